// What all readers of an activation do to its channels moves into the weights that it comes from.
// RUN: gqc-opt %s -p fold-channels | filecheck %s
// RUN: gqc-opt %s -p 'fold-channels,quantize-weights{schemes="*=keep"},legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},fold-weights' | filecheck %s --check-prefix FOLDED

// A factor goes into one side of a product; a permutation into both, and through SiLU.
// CHECK-LABEL: func.func @gated
// CHECK-DAG:     %[[F:.*]] = gq.weight @down.factor
// CHECK-DAG:     %[[O:.*]] = gq.weight @down.order
// CHECK:         %[[G:.*]] = gq.weight @gate.weight
// CHECK-NEXT:    %[[G1:.*]] = gq.gather_channels %[[G]] by %[[O]] along 0
// CHECK-NEXT:    %[[U:.*]] = gq.weight @up.weight
// CHECK-NEXT:    %[[U1:.*]] = gq.scale_channels %[[U]] by %[[F]] along 0 inverse
// CHECK-NEXT:    %[[U2:.*]] = gq.gather_channels %[[U1]] by %[[O]] along 0
// CHECK-NEXT:    %[[B:.*]] = gq.weight @up.bias
// CHECK-NEXT:    %[[B1:.*]] = gq.scale_channels %[[B]] by %[[F]] along 0 inverse
// CHECK-NEXT:    %[[B2:.*]] = gq.gather_channels %[[B1]] by %[[O]] along 0
// CHECK-NEXT:    %d = gq.weight @down.weight
// CHECK-NEXT:    %a = gq.matmul_t %x, %[[G1]] :
// CHECK-NEXT:    %s = fx.call "aten.silu.default"(%a)
// CHECK-NEXT:    %b = gq.matmul_t %x, %[[U2]] bias %[[B2]] :
// CHECK-NEXT:    %h = fx.call "aten.mul.Tensor"(%s, %b)
// CHECK-NEXT:    %y = gq.matmul_t %h, %d
// FOLDED-LABEL: func.func @gated
// FOLDED-NOT:     channels
// FOLDED:         %[[U:.*]] = gq.weight @up.weight
// FOLDED:         gq.matmul_t %x, %[[U]] bias
func.func @gated(%x : tensor<?x8xf32>) -> tensor<?x8xf32> {
  %g = gq.weight @gate.weight : tensor<16x8xf32>
  %u = gq.weight @up.weight : tensor<16x8xf32>
  %ub = gq.weight @up.bias : tensor<16xf32>
  %d = gq.weight @down.weight : tensor<8x16xf32>
  %a = gq.matmul_t %x, %g : (tensor<?x8xf32>, tensor<16x8xf32>) -> tensor<?x16xf32>
  %s = fx.call "aten.silu.default"(%a) : (tensor<?x16xf32>) -> tensor<?x16xf32>
  %b = gq.matmul_t %x, %u bias %ub : (tensor<?x8xf32>, tensor<16x8xf32>, tensor<16xf32>) -> tensor<?x16xf32>
  %h = fx.call "aten.mul.Tensor"(%s, %b) : (tensor<?x16xf32>, tensor<?x16xf32>) -> tensor<?x16xf32>
  %f = gq.weight @down.factor : tensor<16xf32>
  %h1 = gq.scale_channels %h by %f along 1 inverse : tensor<?x16xf32>, tensor<16xf32> -> tensor<?x16xf32>
  %o = gq.weight @down.order : tensor<16xi64>
  %h2 = gq.gather_channels %h1 by %o along 1 : tensor<?x16xf32>, tensor<16xi64> -> tensor<?x16xf32>
  %y = gq.matmul_t %h2, %d : (tensor<?x16xf32>, tensor<8x16xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// Two layers multiply by one factor: it goes into the norm. Gemma's has 1 added to its weight. The
// rows of a weight that is stored transposed are columns, before it is quantized.
// CHECK-LABEL: func.func @norm
// CHECK:         %[[W:.*]] = gq.weight @norm.weight
// CHECK-NEXT:    %[[V:.*]] = gq.scale_channels %[[W]] by %{{.*}} along 0 offset 1.000000e+00
// CHECK-NEXT:    fx.call "aten.add.Tensor"(%[[V]], 1.000000e+00 : f64)
// CHECK:         %[[Y:.*]] = fx.call "aten.mul.Tensor"
// CHECK-NEXT:    %[[C:.*]] = gq.weight @conv.weight : tensor<8x16xf32>
// CHECK-NEXT:    %[[C1:.*]] = gq.gather_channels %[[C]] by %{{.*}} along 1
// CHECK-NEXT:    %[[C2:.*]] = gq.transpose %[[C1]]
// CHECK-NEXT:    %[[C3:.*]] = gq.qcast %[[C2]]
// CHECK-NEXT:    gq.matmul_t %[[Y]], %[[C3]]
func.func @norm(%x : tensor<?x8xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>) {
  %w = gq.weight @norm.weight : tensor<8xf32>
  %w1 = fx.call "aten.add.Tensor"(%w, 1.0 : f64) : (tensor<8xf32>) -> tensor<8xf32>
  %n = fx.call "aten.mul.Tensor"(%x, %w1) : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?x8xf32>
  %f = gq.weight @factor : tensor<8xf32>
  %n1 = gq.scale_channels %n by %f along 1 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %n2 = gq.scale_channels %n by %f along 1 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %c = gq.weight @conv.weight : tensor<8x16xf32>
  %ct = gq.transpose %c : tensor<8x16xf32> -> tensor<16x8xf32>
  %cq = gq.qcast %ct by "rtn" "half" : tensor<16x8xf32> -> tensor<16x8x!gq.block_scaled<1x8 : f16 : si4>>
  %y = gq.matmul_t %n1, %cq : (tensor<?x8xf32>, tensor<16x8x!gq.block_scaled<1x8 : f16 : si4>>) -> tensor<?x16xf32>
  %o = gq.weight @order : tensor<16xi64>
  %y1 = gq.gather_channels %y by %o along 1 : tensor<?x16xf32>, tensor<16xi64> -> tensor<?x16xf32>
  %v = gq.weight @fc.weight : tensor<16x8xf32>
  %z = gq.matmul_t %n2, %v : (tensor<?x8xf32>, tensor<16x8xf32>) -> tensor<?x16xf32>
  func.return %y1, %z : tensor<?x16xf32>, tensor<?x16xf32>
}

// What cannot move says why: readers that do not agree, codes, arguments, computed factors.
// CHECK-LABEL: func.func @kept
// CHECK:         gq.scale_channels %x by %{{.*}} along 1 {reason = "an argument of the function: nothing before it is known"}
// CHECK:         gq.scale_channels %y by %{{.*}} along 1 {reason = "gq.matmul_t is read by gq.gather_channels too"}
// CHECK:         gq.gather_channels %y by %{{.*}} along 1 {reason = "gq.matmul_t is read by gq.scale_channels too"}
// CHECK:         gq.scale_channels %z by %{{.*}} along 1 {reason = "quantized.weight is quantized already, and codes cannot be scaled"}
// CHECK:         gq.rotate_channels %{{.*}} blocks 8 {reason = "a rotation mixes channels, and passes no norm or product before it"}
// CHECK:         gq.scale_channels %v by %{{.*}} along 1 {reason = "aten.abs.default computes its operand as the model runs"}
func.func @kept(%x : tensor<?x8xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) {
  %f = gq.weight @kept.factor : tensor<8xf32>
  %o = gq.weight @kept.order : tensor<8xi64>
  %x1 = gq.scale_channels %x by %f along 1 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %w = gq.weight @kept.weight : tensor<8x8xf32>
  %y = gq.matmul_t %x1, %w : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %y1 = gq.scale_channels %y by %f along 1 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %y2 = gq.gather_channels %y by %o along 1 : tensor<?x8xf32>, tensor<8xi64> -> tensor<?x8xf32>
  %q = gq.weight @quantized.weight : tensor<8x8x!gq.block_scaled<1x8 : f16 : si4>>
  %z = gq.matmul_t %y1, %q : (tensor<?x8xf32>, tensor<8x8x!gq.block_scaled<1x8 : f16 : si4>>) -> tensor<?x8xf32>
  %z1 = gq.scale_channels %z by %f along 1 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  %z2 = gq.rotate_channels %z1 blocks 8 : tensor<?x8xf32> -> tensor<?x8xf32>
  %u = gq.weight @other.weight : tensor<8x8xf32>
  %v = gq.matmul_t %x, %u : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %m = fx.call "aten.abs.default"(%f) : (tensor<8xf32>) -> tensor<8xf32>
  %v1 = gq.scale_channels %v by %m along 1 : tensor<?x8xf32>, tensor<8xf32> -> tensor<?x8xf32>
  func.return %y1, %y2, %z2, %v1 : tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>
}

// A permutation would reach a layer that reads its path, whose columns stay as they are; and a
// square matrix along both dimensions.
// CHECK-LABEL: func.func @crossed
// CHECK:         gq.gather_channels %s by %{{.*}} along 1 {reason = "gq.matmul_t is read by gq.matmul_t too"}
// CHECK:         gq.gather_channels %r by %{{.*}} along 1 {reason = "gq.matmul_t is read along two dimensions"}
func.func @crossed(%x : tensor<8x8xf32>) -> (tensor<8x8xf32>, tensor<8x8xf32>) {
  %o = gq.weight @crossed.order : tensor<8xi64>
  %w = gq.weight @first.weight : tensor<8x8xf32>
  %v = gq.weight @inner.weight : tensor<8x8xf32>
  %u = gq.weight @square.weight : tensor<8x8xf32>
  %h = gq.matmul_t %x, %w : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %i = gq.matmul_t %h, %v : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %s = fx.call "aten.add.Tensor"(%h, %i) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %s1 = gq.gather_channels %s by %o along 1 : tensor<8x8xf32>, tensor<8xi64> -> tensor<8x8xf32>
  %q = gq.matmul_t %x, %u : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %t = fx.call "aten.transpose.int"(%q, 0, 1) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %r = fx.call "aten.add.Tensor"(%q, %t) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %r1 = gq.gather_channels %r by %o along 1 : tensor<8x8xf32>, tensor<8xi64> -> tensor<8x8xf32>
  func.return %s1, %r1 : tensor<8x8xf32>, tensor<8x8xf32>
}
