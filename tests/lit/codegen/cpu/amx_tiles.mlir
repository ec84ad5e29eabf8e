// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w4a16_mxfp4"},legalize{target=cpu_amx},assign-layouts{target=cpu_amx},split-m-buckets{target=cpu_amx},lower-to-tile{target=cpu_amx}' -t llvm | filecheck %s

// Few rows are multiplied as with AVX512-BF16. For many, one configuration of tiles is filled in for
// whole blocks of 32 rows of x, and one for the last rows, which has fewer rows in tiles of sums and
// of x; this is in use only for a block that x does not fill. Tiles of x are read from x, those of
// weights from the pairs of rows that are decoded to memory, and sums are kept in memory.

// CHECK:      define void @"matmul_bf16_f4E2M1FN_g32_f8E8M0FNU_64x128_m16.program"
// CHECK:        call <16 x float> @"llvm.x86.avx512bf16.dpbf16ps.512"
// CHECK-NOT:    llvm.x86.tdpbf16ps
// CHECK:      define void @"matmul_bf16_f4E2M1FN_g32_f8E8M0FNU_64x128_any.program"(ptr noalias %{{.*}}, i64 %[[M:[.\w]+]], i64 %{{.*}}, i64 %{{.*}})
// CHECK:        and i64 %[[M]], 31
// CHECK:        call void @"llvm.x86.ldtilecfg"(ptr %[[WHOLE:[.\w]+]])
// CHECK:        icmp ult i64 %{{.*}}, 32
// CHECK:        call void @"llvm.x86.ldtilecfg"(ptr %[[LAST:[.\w]+]])
// CHECK:        call void @"llvm.x86.tileloadd64"(i8 0, ptr %{{.*}}, i64 256)
// CHECK:        call void @"llvm.x86.tileloadd64"(i8 4, ptr %{{.*}}, i64 256)
// CHECK:        call void @"llvm.x86.tileloadd64"(i8 6, ptr %{{.*}}, i64 256)
// CHECK:        call void @"llvm.x86.tileloadd64"(i8 7, ptr %{{.*}}, i64 256)
// CHECK-NEXT:   call void @"llvm.x86.tdpbf16ps"(i8 0, i8 4, i8 6)
// CHECK-NEXT:   call void @"llvm.x86.tdpbf16ps"(i8 1, i8 4, i8 7)
// CHECK-NEXT:   call void @"llvm.x86.tdpbf16ps"(i8 2, i8 5, i8 6)
// CHECK-NEXT:   call void @"llvm.x86.tdpbf16ps"(i8 3, i8 5, i8 7)
// CHECK:        call void @"llvm.x86.tilestored64"(i8 3, ptr %{{.*}}, i64 256)
// CHECK:        call void @"llvm.x86.ldtilecfg"(ptr %[[WHOLE]])
// CHECK:        call void @"llvm.x86.tilerelease"()
// CHECK-NEXT:   ret void

func.func @forward(%x : tensor<?x128xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @weight : tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
