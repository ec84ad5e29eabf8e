// quantize-weights: a router of experts is kept unless a pattern ends in its name.
// RUN: gqc-opt %s -p 'quantize-weights{schemes="mlp.*=int8_g32","*=int4_g32"}' | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*.gate=int8_g32","*=int4_g32"}' | filecheck %s --check-prefix NAMED

// CHECK: gq.matmul_t %x, %w decision <kept, "a router of experts is kept by default: a pattern that ends in its name quantizes it">
// NAMED: gq.matmul_t %x, %wq : (tensor<?x64xf32>, tensor<4x64x!gq.block_scaled<1x32 : f16 : ui8
func.func @forward(%x : tensor<?x64xf32>) -> tensor<?x4xf32> {
  %w = gq.weight @mlp.gate.weight {router} : tensor<4x64xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<4x64xf32>) -> tensor<?x4xf32>
  func.return %y : tensor<?x4xf32>
}
