// RUN: python %S/custom_pass.py %s -p 'quantize-weights{schemes="*=int4_g32"},widen-small-layers{rows=64}' | filecheck %s

// CHECK:  %[[W:.*]] = gq.qcast %small {{.*}} -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui8,
// CHECK:  %[[V:.*]] = gq.qcast %large {{.*}} -> tensor<512x64x!gq.block_scaled<1x32 : f16 : ui4,
// CHECK:  gq.matmul_t %x, %[[W]]
// CHECK:  gq.matmul_t %{{.*}}, %[[V]]
func.func @forward(%x : tensor<?x128xf32>) -> tensor<?x512xf32> {
  %small = gq.weight @small.weight : tensor<64x128xf32>
  %large = gq.weight @large.weight : tensor<512x64xf32>
  %h = gq.matmul_t %x, %small : (tensor<?x128xf32>, tensor<64x128xf32>) -> tensor<?x64xf32>
  %y = gq.matmul_t %h, %large : (tensor<?x64xf32>, tensor<512x64xf32>) -> tensor<?x512xf32>
  func.return %y : tensor<?x512xf32>
}
