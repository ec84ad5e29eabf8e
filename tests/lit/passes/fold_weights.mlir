// fold-weights: what depends on weights alone is computed once, into weights of other names.
// RUN: gqc-opt %s -p fold-weights | filecheck %s

// CHECK:      gq.materialize {
// CHECK-NEXT:   %w = gq.weight @fc.weight : tensor<64x128xbf16>
// CHECK-NEXT:   %q = gq.qcast %w by "rtn" "minmax"
// CHECK-NEXT:   %p, %s, %z = gq.pack %q layout <k_words>
// CHECK-NEXT:   gq.store %p, %s, %z to [@fc.weight_packed, @fc.weight_scale, @fc.weight_zero] :
// CHECK:        gq.store {{.*}} to [@shared_packed, @shared_scale] :
// CHECK:        gq.store {{.*}} to [@shared_packed_, @shared_scale_] :
// CHECK:        %[[NORM:.*]] = gq.scale_channels {{.*}} along 0
// CHECK-NEXT:   gq.store %[[NORM]] to [@norm.weight] : tensor<64xf32>

// CHECK-LABEL: func.func @forward
// CHECK-NEXT:    %weight_packed = gq.weight @fc.weight_packed : tensor<64x16xi32>
// CHECK-NEXT:    %weight_scale = gq.weight @fc.weight_scale : tensor<4x64xf16>
// CHECK-NEXT:    %weight_zero = gq.weight @fc.weight_zero : tensor<4x64xf16>
// CHECK-NEXT:    %y = gq.launch [@kernel] rows [-1] on(%x : tensor<?x128xbf16>) weights(%weight_packed, %weight_scale, %weight_zero : tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16>) -> tensor<?x64xbf16>
// CHECK-NEXT:    func.return %y
func.func @forward(%x : tensor<?x128xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @fc.weight : tensor<64x128xbf16>
  %q = gq.qcast %w by "rtn" "minmax" : tensor<64x128xbf16> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %p, %s, %z = gq.pack %q layout <k_words> : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16>
  %y = gq.launch [@kernel] rows [-1] on (%x : tensor<?x128xbf16>) weights (%p, %s, %z : tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

tile.kernel @kernel(%x : memref<?x128xbf16>, %y : memref<?x64xbf16>) tile<16, 8> {}

// Two planes, an integer zero point, and a transpose; the embedding still reads the dense weight.
// CHECK-LABEL: func.func @planes
// CHECK-NEXT:    %w = gq.weight @tied : tensor<128x64xbf16>
// CHECK-NEXT:    %tied_packed = gq.weight @tied_packed_2 : tensor<64x8xi32>
// CHECK-NEXT:    %tied_packed_1 = gq.weight @tied_packed_1 : tensor<64x4xi32>
// CHECK-NEXT:    %tied_scale = gq.weight @tied_scale : tensor<1x64xf16>
// CHECK-NEXT:    %tied_zero = gq.weight @tied_zero_2 : tensor<1x4xi32>
// CHECK-NEXT:    %tied_zero_1 = gq.weight @tied_zero_1 : tensor<1x2xi32>
// CHECK-NEXT:    %x = fx.call "aten.embedding.default"(%w, %ids)
// CHECK-NEXT:    func.return %x, %tied_packed, %tied_packed_1, %tied_scale, %tied_zero, %tied_zero_1
func.func @planes(%ids : tensor<?xi64>) -> (tensor<?x64xbf16>, tensor<64x8xi32>, tensor<64x4xi32>, tensor<1x64xf16>, tensor<1x4xi32>, tensor<1x2xi32>) {
  %w = gq.weight @tied : tensor<128x64xbf16>
  %x = fx.call "aten.embedding.default"(%w, %ids) : (tensor<128x64xbf16>, tensor<?xi64>) -> tensor<?x64xbf16>
  %t = gq.transpose %w : tensor<128x64xbf16> -> tensor<64x128xbf16>
  %q = gq.qcast %t by "rtn" "minmax" : tensor<64x128xbf16> -> tensor<64x128x!gq.block_scaled<1x? : f16 : ui3, zero = ui3, zero_mode = quantized>>
  %a, %b, %s, %c, %d = gq.pack %q layout <k_words> : tensor<64x128x!gq.block_scaled<1x? : f16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x8xi32>, tensor<64x4xi32>, tensor<1x64xf16>, tensor<1x4xi32>, tensor<1x2xi32>
  func.return %x, %a, %b, %s, %c, %d : tensor<?x64xbf16>, tensor<64x8xi32>, tensor<64x4xi32>, tensor<1x64xf16>, tensor<1x4xi32>, tensor<1x2xi32>
}

// A weight that two layers quantize by different schemes has a name for each; by one, a single name.
// CHECK-LABEL: func.func @two_schemes
// CHECK-NEXT:    %shared_packed_ = gq.weight @shared_packed_ : tensor<64x8xi32>
// CHECK-NEXT:    %shared_scale_ = gq.weight @shared_scale_ : tensor<1x64xf16>
// CHECK-NEXT:    %shared_packed = gq.weight @shared_packed : tensor<64x8xi32>
// CHECK-NEXT:    %shared_scale = gq.weight @shared_scale : tensor<2x64xf16>
// CHECK-NEXT:    func.return %shared_packed, %shared_scale, %shared_packed_, %shared_scale_
func.func @two_schemes() -> (tensor<64x8xi32>, tensor<2x64xf16>, tensor<64x8xi32>, tensor<1x64xf16>) {
  %w = gq.weight @shared : tensor<64x64xbf16>
  %q = gq.qcast %w by "rtn" "half" : tensor<64x64xbf16> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>
  %r = gq.qcast %w by "rtn" "half" : tensor<64x64xbf16> -> tensor<64x64x!gq.block_scaled<1x64 : f16 : si4>>
  %a, %s = gq.pack %q layout <k_words> : tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<64x8xi32>, tensor<2x64xf16>
  %b, %t = gq.pack %r layout <k_words> : tensor<64x64x!gq.block_scaled<1x64 : f16 : si4>> -> tensor<64x8xi32>, tensor<1x64xf16>
  func.return %a, %s, %b, %t : tensor<64x8xi32>, tensor<2x64xf16>, tensor<64x8xi32>, tensor<1x64xf16>
}

// A weight whose channels are changed keeps its name, unless something reads it as it was. What is
// packed is named by the weight, and differs where the factor does.
// CHECK-LABEL: func.func @channels
// CHECK-NEXT:    %[[N:.*]] = gq.weight @norm.weight : tensor<64xf32>
// CHECK-NEXT:    %[[OLD:.*]] = gq.weight @read.weight : tensor<64xf32>
// CHECK-NEXT:    %[[NEW:.*]] = gq.weight @read.weight_ : tensor<64xf32>
// CHECK-NEXT:    %[[B:.*]] = gq.weight @proj.weight_packed_ :
// CHECK-NEXT:    %[[A:.*]] = gq.weight @proj.weight_packed :
// CHECK-NEXT:    func.return %[[N]], %[[OLD]], %[[NEW]], %[[A]], %[[B]]
func.func @channels() -> (tensor<64xf32>, tensor<64xf32>, tensor<64xf32>, tensor<64x8xi32>, tensor<64x8xi32>) {
  %f = gq.weight @factor : tensor<64xf32>
  %g = gq.weight @other : tensor<64xf32>
  %n = gq.weight @norm.weight : tensor<64xf32>
  %norm = gq.scale_channels %n by %f along 0 : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %r = gq.weight @read.weight : tensor<64xf32>
  %r1 = gq.scale_channels %r by %f along 0 : tensor<64xf32>, tensor<64xf32> -> tensor<64xf32>
  %w = gq.weight @proj.weight : tensor<64x64xf32>
  %w1 = gq.scale_channels %w by %f along 1 : tensor<64x64xf32>, tensor<64xf32> -> tensor<64x64xf32>
  %q1 = gq.qcast %w1 by "rtn" "half" : tensor<64x64xf32> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>
  %a, %s = gq.pack %q1 layout <k_words> : tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<64x8xi32>, tensor<2x64xf16>
  %w2 = gq.scale_channels %w by %g along 1 : tensor<64x64xf32>, tensor<64xf32> -> tensor<64x64xf32>
  %q2 = gq.qcast %w2 by "rtn" "half" : tensor<64x64xf32> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>
  %b, %t = gq.pack %q2 layout <k_words> : tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<64x8xi32>, tensor<2x64xf16>
  func.return %norm, %r, %r1, %a, %b : tensor<64xf32>, tensor<64xf32>, tensor<64xf32>, tensor<64x8xi32>, tensor<64x8xi32>
}
