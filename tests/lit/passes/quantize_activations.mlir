// RUN: gqc-opt -p 'quantize-activations{schemes="*.down=mxfp8","*.static=nvfp4_static","*=nvfp4"}' %s | filecheck %s

// Layers that read one activation under one scheme share its quantized form, and NVFP4's scale of
// the whole tensor; a static one is calibrated and stored.
// CHECK: %[[STATIC:.*]] = gq.weight @mlp.static.input_scale : tensor<1xf32>
// CHECK-NEXT: %[[XS:.*]] = gq.qcast %x scale %[[STATIC]] by "microscaling" "amax"
// CHECK-NEXT: %[[SCALE:.*]] = gq.tensor_scale %x for <1x16 : f8E4M3FN : f4E2M1FN, global = f32>
// CHECK-NEXT: %[[XQ:.*]] = gq.qcast %x scale %[[SCALE]] by "microscaling" "amax"
// CHECK: %[[G:.*]] = gq.matmul_t %[[XQ]],
// CHECK-NEXT: %[[GQ:.*]] = gq.qcast %[[G]] by "microscaling" "floor"
// CHECK-NEXT: gq.matmul_t %[[XQ]],
// CHECK-NEXT: gq.matmul_t %[[XS]],
// CHECK-NEXT: gq.matmul_t %[[GQ]],
func.func @forward(%x : tensor<?x32xf32>) -> tensor<?x32xf32> {
  %w = gq.weight @w : tensor<32x32xf32>
  %q = gq.qcast %w by "microscaling" "floor" : tensor<32x32xf32> -> tensor<32x32x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>>
  %g = gq.matmul_t %x, %q : (tensor<?x32xf32>, tensor<32x32x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>>) -> tensor<?x32xf32> loc("mlp.gate")
  %u = gq.matmul_t %x, %q : (tensor<?x32xf32>, tensor<32x32x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>>) -> tensor<?x32xf32> loc("mlp.up")
  %s = gq.matmul_t %x, %q : (tensor<?x32xf32>, tensor<32x32x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>>) -> tensor<?x32xf32> loc("mlp.static")
  %y = gq.matmul_t %g, %q : (tensor<?x32xf32>, tensor<32x32x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>>) -> tensor<?x32xf32> loc("mlp.down")
  func.return %y : tensor<?x32xf32>
}
