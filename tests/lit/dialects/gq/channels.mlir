// Channels of activations and of weights: scaled, taken in another order, rotated.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK-LABEL: func.func @activations
// CHECK:         %a = gq.scale_channels %x by %f along 1 : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
// CHECK-NEXT:    %b = gq.scale_channels %a by %f along 1 inverse {reason = "an input of the module"} : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
// CHECK-NEXT:    %c = gq.gather_channels %b by %o along 1 : tensor<?x64xf32>, tensor<64xi64> -> tensor<?x64xf32>
// CHECK-NEXT:    %d = gq.rotate_channels %c blocks 32 : tensor<?x64xf32> -> tensor<?x64xf32>
// GENERIC:       %a = "gq.scale_channels"(%x, %f) <{dim = 1 : i64}>
// GENERIC-NEXT:  %b = "gq.scale_channels"(%a, %f) <{dim = 1 : i64, inverse}> {reason = "an input of the module"}
// GENERIC-NEXT:  %c = "gq.gather_channels"(%b, %o) <{dim = 1 : i64}>
// GENERIC-NEXT:  %d = "gq.rotate_channels"(%c) <{block = 32 : i64}>
func.func @activations(%x : tensor<?x64xf32>) -> tensor<?x64xf32> {
  %f = gq.weight @fc.factor : tensor<64xf32>
  %o = gq.weight @fc.order : tensor<64xi64>
  %a = gq.scale_channels %x by %f along 1 : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
  %b = gq.scale_channels %a by %f along 1 inverse {reason = "an input of the module"} : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
  %c = gq.gather_channels %b by %o along 1 : tensor<?x64xf32>, tensor<64xi64> -> tensor<?x64xf32>
  %d = gq.rotate_channels %c blocks 32 : tensor<?x64xf32> -> tensor<?x64xf32>
  func.return %d : tensor<?x64xf32>
}

// The weight of Gemma's norm is added to 1. Rows of a block-scaled weight move with their scales.
// CHECK-LABEL: func.func @weights
// CHECK:         %s = gq.scale_channels %w by %f along 0 inverse offset 1.000000e+00 : tensor<64xbf16>, tensor<64xf32> -> tensor<64xbf16>
// CHECK-NEXT:    %r = gq.gather_channels %q by %o along 0 : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>, tensor<64xi64> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>
// GENERIC:       %s = "gq.scale_channels"(%w, %f) <{dim = 0 : i64, inverse, offset = 1.000000e+00 : f64}>
func.func @weights(%q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>) {
  %f = gq.weight @fc.factor : tensor<64xf32>
  %o = gq.weight @fc.order : tensor<64xi64>
  %w = gq.weight @norm.weight : tensor<64xbf16>
  %s = gq.scale_channels %w by %f along 0 inverse offset 1.0 : tensor<64xbf16>, tensor<64xf32> -> tensor<64xbf16>
  %r = gq.gather_channels %q by %o along 0 : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>, tensor<64xi64> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>
  func.return
}
