// recognize-linears: a layer that also multiplies a constant (DeBERTa's q and k read positions) is
// one layer: its weight is quantized once, and every product reads it. LoRA's B·A is none.
// RUN: gqc-opt %s -p 'recognize-linears,quantize-weights{schemes="*=int4_g32"}' | filecheck %s

// CHECK-LABEL: func.func @shared
// CHECK:       %[[Q:.*]] = gq.qcast
// CHECK-NOT:   gq.qcast
// CHECK:       gq.matmul_t %x, %[[Q]] :
// CHECK:       gq.matmul_t %positions, %[[Q]] :
// CHECK:       gq.matmul_t %positions, %[[Q]] :
func.func @shared(%x : tensor<?x64xf32>) -> (tensor<?x64xf32>, tensor<8x64xf32>, tensor<8x64xf32>) {
  %w = gq.weight @key.weight : tensor<64x64xf32>
  %positions = gq.weight @positions : tensor<8x64xf32>
  %0 = fx.call "aten.linear.default"(%x, %w) : (tensor<?x64xf32>, tensor<64x64xf32>) -> tensor<?x64xf32> loc("key")
  %1 = fx.call "aten.linear.default"(%positions, %w) : (tensor<8x64xf32>, tensor<64x64xf32>) -> tensor<8x64xf32> loc("key")
  %2 = fx.call "aten.linear.default"(%positions, %w) : (tensor<8x64xf32>, tensor<64x64xf32>) -> tensor<8x64xf32> loc("tied")
  func.return %0, %1, %2 : tensor<?x64xf32>, tensor<8x64xf32>, tensor<8x64xf32>
}

// CHECK-LABEL: func.func @alone
// CHECK:       gq.matmul_t
// CHECK:       fx.call "aten.linear.default"
func.func @alone() -> (tensor<8x64xf32>, tensor<8x64xf32>) {
  %w = gq.weight @key.weight : tensor<64x64xf32>
  %b = gq.weight @lora_b.weight : tensor<64x64xf32>
  %positions = gq.weight @positions : tensor<8x64xf32>
  %0 = fx.call "aten.linear.default"(%positions, %w) : (tensor<8x64xf32>, tensor<64x64xf32>) -> tensor<8x64xf32> loc("key")
  %1 = fx.call "aten.linear.default"(%positions, %b) : (tensor<8x64xf32>, tensor<64x64xf32>) -> tensor<8x64xf32> loc("adapter")
  func.return %0, %1 : tensor<8x64xf32>, tensor<8x64xf32>
}
