// What was not folded runs as torch's functions, or goes into the quantizer that reads it.
// RUN: gqc-opt %s -p lower-channels | filecheck %s
// RUN: gqc-opt %s -p lower-channels,fuse-producers | filecheck %s --check-prefix FUSED

// A product is rounded once; a permutation takes channels by index; weights and rotations stay.
// CHECK-LABEL: func.func @lowered
// CHECK:         %[[M:.*]] = fx.call "aten.mul.Tensor"(%x, %f) : (tensor<?x64xbf16>, tensor<64xf32>) -> tensor<?x64xf32>
// CHECK-NEXT:    %[[A:.*]] = fx.call "aten._to_copy.default"(%[[M]]) {dtype = #fx.dtype<"bfloat16">} : (tensor<?x64xf32>) -> tensor<?x64xbf16>
// CHECK-NEXT:    %b = fx.call "aten.div.Tensor"(%[[A]], %h) : (tensor<?x64xbf16>, tensor<64xbf16>) -> tensor<?x64xbf16>
// CHECK-NEXT:    %c = fx.call "aten.index_select.default"(%b, -1, %o) : (tensor<?x64xbf16>, tensor<64xi64>) -> tensor<?x64xbf16>
// CHECK-NEXT:    %d = gq.rotate_channels %c blocks 32
// CHECK:         gq.scale_channels %w by %f along 1
func.func @lowered(%x : tensor<?x64xbf16>) -> (tensor<?x64xbf16>, tensor<8x64xf32>) {
  %f = gq.weight @factor : tensor<64xf32>
  %h = gq.weight @half : tensor<64xbf16>
  %o = gq.weight @order : tensor<64xi64>
  %a = gq.scale_channels %x by %f along 1 : tensor<?x64xbf16>, tensor<64xf32> -> tensor<?x64xbf16>
  %b = gq.scale_channels %a by %h along 1 inverse : tensor<?x64xbf16>, tensor<64xbf16> -> tensor<?x64xbf16>
  %c = gq.gather_channels %b by %o along 1 : tensor<?x64xbf16>, tensor<64xi64> -> tensor<?x64xbf16>
  %d = gq.rotate_channels %c blocks 32 : tensor<?x64xbf16> -> tensor<?x64xbf16>
  %w = gq.weight @fc.weight : tensor<8x64xf32>
  %s = gq.scale_channels %w by %f along 1 : tensor<8x64xf32>, tensor<64xf32> -> tensor<8x64xf32>
  func.return %d, %s : tensor<?x64xbf16>, tensor<8x64xf32>
}

// FUSED-LABEL: func.func @quantized
// FUSED:         gq.fused %x, %f : tensor<?x64xbf16>, tensor<64xf32> -> tensor<?x64xbf16>
// FUSED:         aten.mul.Tensor
// FUSED:         aten._to_copy.default
// FUSED:         gq.yield
func.func @quantized(%x : tensor<?x64xbf16>) -> tensor<?x64xbf16> {
  %f = gq.weight @factor : tensor<64xf32>
  %a = gq.scale_channels %x by %f along 1 : tensor<?x64xbf16>, tensor<64xf32> -> tensor<?x64xbf16>
  %q = gq.qcast %a by "microscaling" "floor" : tensor<?x64xbf16> -> tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>>
  %d = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>> -> tensor<?x64xbf16>
  func.return %d : tensor<?x64xbf16>
}
