// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w8a16_mxfp8"},legalize{target=cpu_avx512bf16},assign-layouts{target=cpu_avx512bf16},split-m-buckets{target=cpu_avx512bf16},lower-to-tile{target=cpu_avx512bf16}' -t llvm | filecheck %s

// E4M3 codes, bf16. The lower and the upper bytes of the values of 64 codes are looked up in tables
// of 128, by all but the sign, which is added to the upper ones; a shift and a mask then bring the
// two bytes of the first pair together, and those of the second.
// CHECK:      define void @"matmul_bf16_f8E4M3FN_g32_f8E8M0FNU_64x64_m1.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <16 x i32>, ptr %{{.*}}, align 4
// CHECK:        %[[BYTES:[.\w]+]] = bitcast <16 x i32> %[[WORDS]] to <64 x i8>
// CHECK-NEXT:   %[[LOW:[.\w]+]] = call <64 x i8> @"llvm.x86.avx512.vpermi2var.qi.512"(<64 x i8> {{.*}}, <64 x i8> %[[BYTES]], <64 x i8> {{.*}})
// CHECK:        %[[HIGH:[.\w]+]] = call <64 x i8> @"llvm.x86.avx512.vpermi2var.qi.512"(<64 x i8> {{.*}}, <64 x i8> %{{.*}}, <64 x i8> {{.*}})
// CHECK:        %[[SIGN:[.\w]+]] = and <16 x i32> %[[WORDS]], splat (i32 -2139062144)
// CHECK:        or <64 x i8> %[[HIGH]], %{{.*}}
// CHECK:        shl <16 x i32> %{{.*}}, splat (i32 8)
// CHECK:        and <16 x i32> %{{.*}}, splat (i32 16711935)
// CHECK:        call <16 x float> @"llvm.x86.avx512bf16.dpbf16ps.512"
// CHECK:        lshr <16 x i32> %{{.*}}, splat (i32 8)

func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @weight : tensor<64x64xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
