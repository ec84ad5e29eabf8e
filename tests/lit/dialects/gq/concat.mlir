// Weights and biases together: one after the other, or in turn by panels of rows.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK:      %w = gq.concat %a, %b, %a : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<4x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<20x32x!gq.block_scaled<1x32 : f16 : si4>>
// CHECK-NEXT: %v = gq.concat %c, %c panel = 4 : tensor<8xf32>, tensor<8xf32> -> tensor<16xf32>
// GENERIC:    %w = "gq.concat"(%a, %b, %a) :
// GENERIC:    %v = "gq.concat"(%c, %c) <{panel = 4 : i64}>
func.func @forward() {
  %a = gq.weight @a : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %b = gq.weight @b : tensor<4x32x!gq.block_scaled<1x32 : f16 : si4>>
  %c = gq.weight @c : tensor<8xf32>
  %w = gq.concat %a, %b, %a : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<4x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<20x32x!gq.block_scaled<1x32 : f16 : si4>>
  %v = gq.concat %c, %c panel = 4 : tensor<8xf32>, tensor<8xf32> -> tensor<16xf32>
  func.return
}
