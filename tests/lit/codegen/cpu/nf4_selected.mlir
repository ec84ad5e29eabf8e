// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w4a16_nf4"},legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' -t llvm | filecheck %s

// Without registers of 16 values, NF4 is looked up in two of 8; the top bit of a code selects one.
// CHECK:      define void @"matmul_bf16_nf4_g64_f32_64x64_m1.program"
// CHECK:        %[[BIT:[.\w]+]] = and <8 x i32> %{{.*}}, splat (i32 8)
// CHECK:        %[[SET:[.\w]+]] = icmp ne <8 x i32> %[[BIT]], {{.*}}
// CHECK:        %[[UPPER:[.\w]+]] = call <8 x float> @"llvm.x86.avx2.permps"
// CHECK:        %[[LOWER:[.\w]+]] = call <8 x float> @"llvm.x86.avx2.permps"
// CHECK:        select <8 x i1> %[[SET]], <8 x float> %[[UPPER]], <8 x float> %[[LOWER]]

func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @weight : tensor<64x64xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
