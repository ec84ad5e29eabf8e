// RUN: gqc-opt -p fuse-producers %s | filecheck %s
// RUN: gqc-opt -p fuse-producers,lower-quantizers{target=sm_100} %s | filecheck %s --check-prefix=KERNEL

// What computes an activation, and nothing else, goes into one operation with its cast. The residual
// that another operation reads stays outside.
// CHECK-LABEL: @hugging_face_norm
// CHECK: %{{.*}} = fx.call "aten.add.Tensor"(%x, %r)
// CHECK: %[[Y:.*]] = gq.fused %{{.*}}, %{{.*}} : tensor<?x64xbf16>, tensor<64xbf16> -> tensor<?x64xbf16> {
// CHECK-NEXT: ^bb0(%{{.*}}: tensor<?x64xbf16>, %{{.*}}: tensor<64xbf16>):
// CHECK-NEXT: "aten._to_copy.default"
// CHECK-NEXT: "aten.pow.Tensor_Scalar"
// CHECK-NEXT: "aten.mean.dim"
// CHECK-NEXT: "aten.add.Tensor"
// CHECK-NEXT: "aten.rsqrt.default"
// CHECK-NEXT: "aten.mul.Tensor"
// CHECK-NEXT: "aten._to_copy.default"
// CHECK-NEXT: "aten.mul.Tensor"
// CHECK-NEXT: gq.yield
// CHECK: gq.qcast %[[Y]]
func.func @hugging_face_norm(%x : tensor<?x64xbf16>, %r : tensor<?x64xbf16>) -> (tensor<?x64xbf16>, tensor<?x64xbf16>) {
  %h = fx.call "aten.add.Tensor"(%x, %r) : (tensor<?x64xbf16>, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  %w = gq.weight @norm.weight : tensor<64xbf16>
  %f = fx.call "aten._to_copy.default"(%h) {dtype = #fx.dtype<"float32">} : (tensor<?x64xbf16>) -> tensor<?x64xf32>
  %p = fx.call "aten.pow.Tensor_Scalar"(%f, 2) : (tensor<?x64xf32>) -> tensor<?x64xf32>
  %m = fx.call "aten.mean.dim"(%p, [-1], true) : (tensor<?x64xf32>) -> tensor<?x1xf32>
  %e = fx.call "aten.add.Tensor"(%m, 1.000000e-06 : f64) : (tensor<?x1xf32>) -> tensor<?x1xf32>
  %s = fx.call "aten.rsqrt.default"(%e) : (tensor<?x1xf32>) -> tensor<?x1xf32>
  %n = fx.call "aten.mul.Tensor"(%f, %s) : (tensor<?x64xf32>, tensor<?x1xf32>) -> tensor<?x64xf32>
  %b = fx.call "aten._to_copy.default"(%n) {dtype = #fx.dtype<"bfloat16">} : (tensor<?x64xf32>) -> tensor<?x64xbf16>
  %y = fx.call "aten.mul.Tensor"(%w, %b) : (tensor<64xbf16>, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  %q = gq.qcast %y by "microscaling" "floor" : tensor<?x64xbf16> -> tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>>
  %d = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>> -> tensor<?x64xbf16>
  func.return %d, %h : tensor<?x64xbf16>, tensor<?x64xbf16>
}

// torch's own norm is spelled out.
// CHECK-LABEL: @torch_norm
// CHECK: %[[Y:.*]] = gq.fused %x, %{{.*}} {
// CHECK: "aten.mean.dim"
// CHECK: "aten.add.Tensor"(%{{.*}}, 1.1920928955078125e-07
// CHECK: gq.qcast %[[Y]]
func.func @torch_norm(%x : tensor<?x64xf32>) -> tensor<?x64xf32> {
  %w = gq.weight @norm.weight : tensor<64xf32>
  %y = fx.call "aten.rms_norm.default"(%x, [64], %w) : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %q = gq.qcast %y by "microscaling" "floor" : tensor<?x64xf32> -> tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>>
  %d = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>> -> tensor<?x64xf32>
  func.return %d : tensor<?x64xf32>
}

// CHECK-LABEL: @silu_mul
// CHECK: gq.fused %gate, %up
// KERNEL-LABEL: @silu_mul
// KERNEL: gq.launch [@quantize_silu_mul_f32_{{.*}}_any] {{.*}} on(%gate, %up : tensor<?x64xf32>, tensor<?x64xf32>)
func.func @silu_mul(%gate : tensor<?x64xf32>, %up : tensor<?x64xf32>) -> tensor<?x64xf32> {
  %s = fx.call "aten.silu.default"(%gate) : (tensor<?x64xf32>) -> tensor<?x64xf32>
  %y = fx.call "aten.mul.Tensor"(%s, %up) : (tensor<?x64xf32>, tensor<?x64xf32>) -> tensor<?x64xf32>
  %q = gq.qcast %y by "microscaling" "floor" : tensor<?x64xf32> -> tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>>
  %d = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>> -> tensor<?x64xf32>
  func.return %d : tensor<?x64xf32>
}

// The scale of the whole tensor is taken from it first: it is stored, and nothing is fused.
// CHECK-LABEL: @tensor_scale
// CHECK-NOT: gq.fused
// CHECK: func.return
func.func @tensor_scale(%gate : tensor<?x64xf32>) -> tensor<?x64xf32> {
  %y = fx.call "aten.silu.default"(%gate) : (tensor<?x64xf32>) -> tensor<?x64xf32>
  %t = gq.tensor_scale %y for <1x16 : f8E4M3FN : f4E2M1FN, global = f32> : tensor<?x64xf32>
  %q = gq.qcast %y scale %t by "microscaling" "amax" : tensor<?x64xf32> -> tensor<?x64x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
  %d, %a = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> -> tensor<?x64xf32>, tensor<1xf32>
  func.return %d : tensor<?x64xf32>
}

// A sum over a row of what is not 0 past its end (here LayerNorm's) is left to torch, and so is a
// mean that is kept for others; what follows is fused.
// CHECK-LABEL: @centred
// CHECK: "aten.mean.dim"
// CHECK: "aten.sub.Tensor"
// CHECK: "aten.mean.dim"
// CHECK: %[[S:.*]] = fx.call "aten.mul.Tensor"
// CHECK: gq.fused %[[S]], %
// CHECK-NEXT: ^bb0
// CHECK-NEXT: "aten.mul.Tensor"
// CHECK-NEXT: gq.yield
func.func @centred(%x : tensor<?x64xf32>) -> tensor<?x64xf32> {
  %w = gq.weight @norm.weight : tensor<64xf32>
  %m = fx.call "aten.mean.dim"(%x, [1], true) : (tensor<?x64xf32>) -> tensor<?x1xf32>
  %c = fx.call "aten.sub.Tensor"(%x, %m) : (tensor<?x64xf32>, tensor<?x1xf32>) -> tensor<?x64xf32>
  %p = fx.call "aten.pow.Tensor_Scalar"(%c, 2) : (tensor<?x64xf32>) -> tensor<?x64xf32>
  %v = fx.call "aten.mean.dim"(%p, [1], true) : (tensor<?x64xf32>) -> tensor<?x1xf32>
  %s = fx.call "aten.rsqrt.default"(%v) : (tensor<?x1xf32>) -> tensor<?x1xf32>
  %n = fx.call "aten.mul.Tensor"(%c, %s) : (tensor<?x64xf32>, tensor<?x1xf32>) -> tensor<?x64xf32>
  %y = fx.call "aten.mul.Tensor"(%n, %w) : (tensor<?x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %q = gq.qcast %y by "microscaling" "floor" : tensor<?x64xf32> -> tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>>
  %d = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>> -> tensor<?x64xf32>
  func.return %d : tensor<?x64xf32>
}

// KERNEL: tile.kernel @quantize_pow_mean_add_rsqrt_mul_mul_bf16
// KERNEL-SAME: (%x0: memref<?x64xbf16>, %w0: memref<64xbf16>, %y: memref<?x64xbf16>) tile<1, 64>
// KERNEL: %[[SUMS:.*]] = scf.for
// KERNEL: %[[TOTAL:.*]] = tile.sum %[[SUMS]] axis = 1
// KERNEL: %[[ROOT:.*]] = math.rsqrt
// KERNEL: scf.for
// KERNEL: tile.broadcast %[[ROOT]] : vector<1x1xf32> to vector<1x64xf32>
// KERNEL: tile.qcast
