// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int8_row_sym"},legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' -t llvm | filecheck %s

// Signed 8-bit codes, fp16, a bias, one scale for the whole row. A code is too wide for a look-up:
// its sign is extended and it is converted. N = 60 lies in a panel of 64, so the scale's load is
// whole, and the bias and the output are masked.

// CHECK:      define void @"matmul_f16_si8_row_f16_60x96_bias_m1.program"
// CHECK:        %[[N:[.\w]+]] = mul i64 %{{.*}}, 32
// CHECK:        %[[WORDS:[.\w]+]] = load <8 x i32>, ptr %{{.*}}, align 4
// CHECK:        %[[UP:[.\w]+]] = shl <8 x i32> %[[WORDS]], splat (i32 24)
// CHECK-NEXT:   %[[CODE:[.\w]+]] = ashr <8 x i32> %[[UP]], splat (i32 24)
// CHECK-NEXT:   %[[VALUE:[.\w]+]] = sitofp <8 x i32> %[[CODE]] to <8 x float>
// CHECK:        load <1 x half>, ptr %{{.*}}, align 2
// CHECK:        %[[X:[.\w]+]] = fpext <8 x half> %{{.*}} to <8 x float>
// CHECK-NEXT:   call <8 x float> @"llvm.fma.v8f32"(<8 x float> %[[X]], <8 x float> %[[VALUE]], <8 x float> {{.*}})
// CHECK:        lshr <8 x i32> %[[WORDS]], splat (i32 16)

// The scale is that of the row, whatever k is, once for 32 columns of it.
// CHECK:        %[[PANEL:[.\w]+]] = mul i64 %{{.*}}, 64
// CHECK-NEXT:   %[[LANE:[.\w]+]] = add i64 %[[PANEL]], %{{.*}}
// CHECK-NEXT:   %[[AT:[.\w]+]] = getelementptr half, ptr %scale.{{[0-9]+}}, i64 %[[LANE]]
// CHECK-NEXT:   %[[HALF:[.\w]+]] = load <8 x half>, ptr %[[AT]], align 2
// CHECK-NEXT:   %[[SCALE:[.\w]+]] = fpext <8 x half> %[[HALF]] to <8 x float>
// CHECK:        %[[SUM:[.\w]+]] = call <8 x float> @"llvm.fma.v8f32"(<8 x float> %{{.*}}, <8 x float> %[[SCALE]], <8 x float> %{{.*}})

// CHECK:        %[[BIAS:[.\w]+]] = getelementptr half, ptr %bias.{{[0-9]+}}, i64 %[[N]]
// CHECK-NEXT:   sub i64 60, %[[N]]
// CHECK:        %[[MASK:[.\w]+]] = icmp slt <8 x i64> <i64 0, i64 1, {{.*}}>, %{{.*}}
// CHECK-NEXT:   %[[LOADED:[.\w]+]] = call <8 x i16> @"llvm.masked.load.v8i16.p0"(ptr %[[BIAS]], i32 2, <8 x i1> %[[MASK]], {{.*}})
// CHECK-NEXT:   %[[B16:[.\w]+]] = bitcast <8 x i16> %[[LOADED]] to <8 x half>
// CHECK-NEXT:   %[[B:[.\w]+]] = fpext <8 x half> %[[B16]] to <8 x float>
// CHECK:        %[[Y:[.\w]+]] = fadd <8 x float> %[[SUM]], %[[B]]
// CHECK:        fptrunc <8 x float> %[[Y]] to <8 x half>
// CHECK:        call void @"llvm.masked.store.v8i16.p0"(<8 x i16> %{{.*}}, ptr %{{.*}}, i32 2, <8 x i1> %[[MASK]])

func.func @forward(%x : tensor<?x96xf16>) -> tensor<?x60xf16> {
  %w = gq.weight @fc.weight : tensor<60x96xf16>
  %b = gq.weight @fc.bias : tensor<60xf16>
  %y = gq.matmul_t %x, %w bias %b : (tensor<?x96xf16>, tensor<60x96xf16>, tensor<60xf16>) -> tensor<?x60xf16>
  func.return %y : tensor<?x60xf16>
}
