// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int2_g32"},legalize{target=cpu_avx512bf16},assign-layouts{target=cpu_avx512bf16},split-m-buckets{target=cpu_avx512bf16},lower-to-tile{target=cpu_avx512bf16}' -t llvm | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int2_g32_sym"},legalize{target=cpu_avx512bf16},assign-layouts{target=cpu_avx512bf16},split-m-buckets{target=cpu_avx512bf16},lower-to-tile{target=cpu_avx512bf16}' -t llvm | filecheck %s --check-prefix SYM

// 2-bit codes, bf16. The look-up ignores all but the low five bits of a half, so the four values
// 0, 1, 2, 3 stand in it eight times; the next pair, two bits further, has a table of its own, where
// each value stands four times in a row, and the one after that is four bits further.

// CHECK:      define void @"matmul_bf16_ui2_g32_f16_rescale_f16_64x128_m1.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <16 x i32>, ptr %{{.*}}, align 4
// CHECK:        %[[BITS:[.\w]+]] = bitcast <16 x i32> %[[WORDS]] to <32 x i16>
// CHECK-NEXT:   %[[CODES:[.\w]+]] = call <32 x i16> @"llvm.x86.avx512.permvar.hi.512"(<32 x i16> <i16 0, i16 16256, i16 16384, i16 16448, i16 0, i16 16256, i16 16384, i16 16448, {{.*}}>, <32 x i16> %[[BITS]])
// CHECK:        %[[PAIR:[.\w]+]] = bitcast <32 x i16> %[[CODES]] to <32 x bfloat>
// CHECK:        call <16 x float> @"llvm.x86.avx512bf16.dpbf16ps.512"(<16 x float> {{.*}}, <32 x bfloat> %{{.*}}, <32 x bfloat> %[[PAIR]])
// CHECK:        %[[NEXT:[.\w]+]] = bitcast <16 x i32> %[[WORDS]] to <32 x i16>
// CHECK-NEXT:   call <32 x i16> @"llvm.x86.avx512.permvar.hi.512"(<32 x i16> <i16 0, i16 0, i16 0, i16 0, i16 16256, i16 16256, i16 16256, i16 16256, i16 16384, {{.*}}>, <32 x i16> %[[NEXT]])
// CHECK-NOT:    lshr <16 x i32> %[[WORDS]], splat (i32 2)
// CHECK:        lshr <16 x i32> %[[WORDS]], splat (i32 4)

// After a group's dot, its scale times the dot, and its offset times the sum of x.
// CHECK:        %[[SCALES:[.\w]+]] = getelementptr half, ptr %scale.{{[0-9]+}}
// CHECK-NEXT:   %[[S16:[.\w]+]] = load <16 x half>, ptr %[[SCALES]], align 2
// CHECK-NEXT:   %[[S:[.\w]+]] = fpext <16 x half> %[[S16]] to <16 x float>
// CHECK:        %[[SUM:[.\w]+]] = call <16 x float> @"llvm.fma.v16f32"(<16 x float> %{{.*}}, <16 x float> %[[S]], <16 x float> %{{.*}})
// CHECK:        %[[ZEROS:[.\w]+]] = getelementptr half, ptr %zero.{{[0-9]+}}
// CHECK-NEXT:   %[[Z16:[.\w]+]] = load <16 x half>, ptr %[[ZEROS]], align 2
// CHECK-NEXT:   %[[Z:[.\w]+]] = fpext <16 x half> %[[Z16]] to <16 x float>
// CHECK:        call <16 x float> @"llvm.fma.v16f32"(<16 x float> %{{.*}}, <16 x float> %[[Z]], <16 x float> %[[SUM]])

// Signed: the values are 0, 1, −2, −1, and nothing is summed but the dot.
// SYM:        define void @"matmul_bf16_si2_g32_f16_64x128_m1.program"
// SYM:          call <32 x i16> @"llvm.x86.avx512.permvar.hi.512"(<32 x i16> <i16 0, i16 16256, i16 {{-16384|49152}}, i16 {{-16512|49024}}, {{.*}}>, <32 x i16> %{{.*}})
// SYM-NOT:      load <16 x bfloat>
// SYM:        define void @"matmul_bf16_si2_g32_f16_64x128_m1.worker"

func.func @forward(%x : tensor<?x128xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @fc.weight : tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
