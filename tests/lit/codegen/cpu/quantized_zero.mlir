// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=ui1 g64 scale=f32 zero=ui1 zero_mode=quantized quantizer=rtn scale_rule=minmax"},legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' -t llvm | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=ui8 g64 scale=f32 zero=ui8 zero_mode=quantized quantizer=rtn scale_rule=minmax"},legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' -t llvm | filecheck %s --check-prefix EIGHT

// One-bit codes: look-ups of zeros and ones, 32 columns of K in a word, three of a half by one shift.

// CHECK:      define void @"matmul_bf16_ui1_g64_f32_quantized_ui1_64x128_m1.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <8 x i32>, ptr %{{.*}}, align 4
// CHECK:        %[[CODE:[.\w]+]] = call <8 x float> @"llvm.x86.avx2.permps"(<8 x float> <float 0.0, float 1.0, {{.*}}>, <8 x i32> %[[WORDS]])
// CHECK:        call <8 x float> @"llvm.fma.v8f32"(<8 x float> %{{.*}}, <8 x float> %[[CODE]], <8 x float> %{{.*}})
// CHECK:        lshr <8 x i32> %[[WORDS]], splat (i32 16)
// CHECK:        call <8 x float> @"llvm.x86.avx2.permps"(<8 x float> <float 0.0, float 0.0, float 1.0, {{.*}}>, <8 x i32> %[[WORDS]])
// CHECK-NOT:    lshr <8 x i32> %[[WORDS]], splat (i32 1)
// CHECK:        lshr <8 x i32> %[[WORDS]], splat (i32 3)

// One word of zero points is those of 32 columns; scale · zero · the sum of x is subtracted.
// CHECK:        %[[ZEROS:[.\w]+]] = getelementptr i32, ptr %zero.{{[0-9]+}}
// CHECK-NEXT:   %[[WORD:[.\w]+]] = load <1 x i32>, ptr %[[ZEROS]], align 4
// CHECK-NEXT:   %[[LANES:[.\w]+]] = shufflevector <1 x i32> %[[WORD]], <1 x i32> %[[WORD]], <8 x i32> splat (i32 0)
// CHECK-NEXT:   %[[BITS:[.\w]+]] = lshr <8 x i32> %[[LANES]], <i32 0, i32 16, i32 1, i32 17, i32 2, i32 18, i32 3, i32 19>
// CHECK:        lshr <8 x i32> %{{.*}}, <i32 12, i32 28, i32 13, i32 29, i32 14, i32 30, i32 15, i32 31>
// CHECK:        %[[ZERO:[.\w]+]] = call <8 x float> @"llvm.x86.avx2.permps"({{.*}}, <8 x i32> %[[BITS]])
// CHECK:        %[[OFFSET:[.\w]+]] = fmul <8 x float> %{{.*}}, %[[ZERO]]
// CHECK:        %[[MINUS:[.\w]+]] = fmul <8 x float> %{{.*}}, splat (float -1.0)
// CHECK:        call <8 x float> @"llvm.fma.v8f32"(<8 x float> %[[MINUS]], <8 x float> %[[OFFSET]], <8 x float> %{{.*}})

// bf16 without bf16 instructions: y is rounded to even by adding 0x7fff and its lowest kept bit.
// CHECK:        %[[LOWEST:[.\w]+]] = and <8 x i32> %{{.*}}, splat (i32 1)
// CHECK-NEXT:   add <8 x i32> %[[LOWEST]], splat (i32 32767)

// Unsigned bytes, codes and zero points alike: masked, not extended, and converted.
// EIGHT:      define void @"matmul_bf16_ui8_g64_f32_quantized_ui8_64x128_m1.program"
// EIGHT:        %[[WORDS:[.\w]+]] = load <8 x i32>, ptr %{{.*}}, align 4
// EIGHT:        %[[CODE:[.\w]+]] = and <8 x i32> %[[WORDS]], splat (i32 255)
// EIGHT-NEXT:   sitofp <8 x i32> %[[CODE]] to <8 x float>
// EIGHT:        %[[ZEROS:[.\w]+]] = getelementptr i32, ptr %zero.{{[0-9]+}}
// EIGHT-NEXT:   %[[EIGHT:[.\w]+]] = load <8 x i32>, ptr %[[ZEROS]], align 4
// EIGHT-NEXT:   %[[LANES:[.\w]+]] = shufflevector <8 x i32> %[[EIGHT]], <8 x i32> %[[EIGHT]], <8 x i32> <i32 0, i32 0, i32 0, i32 0, i32 1, i32 1, i32 1, i32 1>
// EIGHT-NEXT:   %[[BITS:[.\w]+]] = lshr <8 x i32> %[[LANES]], <i32 0, i32 16, i32 8, i32 24, i32 0, i32 16, i32 8, i32 24>
// EIGHT:        %[[BYTES:[.\w]+]] = and <8 x i32> %[[BITS]], splat (i32 255)
// EIGHT-NEXT:   %[[ZERO:[.\w]+]] = sitofp <8 x i32> %[[BYTES]] to <8 x float>
// EIGHT:        %[[OFFSET:[.\w]+]] = fmul <8 x float> %{{.*}}, %[[ZERO]]
// EIGHT:        %[[MINUS:[.\w]+]] = fmul <8 x float> %{{.*}}, splat (float -1.0)
// EIGHT:        call <8 x float> @"llvm.fma.v8f32"(<8 x float> %[[MINUS]], <8 x float> %[[OFFSET]], <8 x float> %{{.*}})

func.func @forward(%x : tensor<?x128xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @fc.weight : tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
