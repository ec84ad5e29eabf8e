// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w4a16_nf4"},legalize{target=cpu_avx512bf16},assign-layouts{target=cpu_avx512bf16},split-m-buckets{target=cpu_avx512bf16},lower-to-tile{target=cpu_avx512bf16}' -t llvm | filecheck %s

// NF4, bf16: values that bf16 does not hold, so codes are looked up in f32, and products are in f32.
// The scale of a block comes after its sum.
// CHECK:      define void @"matmul_bf16_nf4_g64_f32_64x64_m1.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <16 x i32>, ptr %{{.*}}, align 4
// CHECK:        call <16 x float> @"llvm.x86.avx512.permvar.sf.512"(<16 x float> {{.*}}, <16 x i32> %[[WORDS]])
// CHECK:        call <16 x float> @"llvm.fma.v16f32"
// CHECK-NOT:    dpbf16ps
// CHECK:        call <16 x float> @"llvm.fma.v16f32"

func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @weight : tensor<64x64xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
