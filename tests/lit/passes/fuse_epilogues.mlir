// fuse-epilogues: what is computed of a launch's result alone moves into its kernel.
// RUN: gqc-opt -p fuse-epilogues %s | filecheck %s

// Activation, residual, a vector: the residual and the vector become inputs. No rounding in between.
// The launch says in torch's operations what is fused.
// CHECK-LABEL: func.func @residual
// CHECK-NEXT: %z = gq.launch [@f_silu_add_mul_m1, @f_silu_add_mul_any] rows [1, -1] on(%x, %r, %v : tensor<?x4x32xbf16>, tensor<?x4x64xbf16>, tensor<64xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x4x64xbf16> fused {
// CHECK-NEXT: ^bb0(%y: tensor<?x4x64xbf16>, %r_1: tensor<?x4x64xbf16>, %v_1: tensor<64xbf16>):
// CHECK-NEXT: %s = fx.call "aten.silu.default"(%y)
// CHECK-NEXT: %a = fx.call "aten.add.Tensor"(%r_1, %s)
// CHECK-NEXT: %z_1 = fx.call "aten.mul.Tensor"(%a, %v_1)
// CHECK-NEXT: gq.yield %z_1
// CHECK-NEXT: }
// CHECK-NEXT: %n = fx.call "aten.neg.default"(%z)
// CHECK-NEXT: func.return %n
func.func @residual(%x : tensor<?x4x32xbf16>, %w : tensor<1x32x64xf32>, %r : tensor<?x4x64xbf16>, %v : tensor<64xbf16>) -> tensor<?x4x64xbf16> {
  %y = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x4x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x4x64xbf16>
  %s = fx.call "aten.silu.default"(%y) : (tensor<?x4x64xbf16>) -> tensor<?x4x64xbf16>
  %a = fx.call "aten.add.Tensor"(%r, %s) : (tensor<?x4x64xbf16>, tensor<?x4x64xbf16>) -> tensor<?x4x64xbf16>
  %z = fx.call "aten.mul.Tensor"(%a, %v) : (tensor<?x4x64xbf16>, tensor<64xbf16>) -> tensor<?x4x64xbf16>
  %n = fx.call "aten.neg.default"(%z) : (tensor<?x4x64xbf16>) -> tensor<?x4x64xbf16>
  func.return %n : tensor<?x4x64xbf16>
}

// Someone else reads the sum: the norm after it stays. A number tells the kernel from the other one.
// CHECK-LABEL: func.func @two_readers
// CHECK-NEXT: %a = gq.launch [@f_add_m1, @f_add_any]
// CHECK: %m = fx.call "aten.mul.Tensor"(%a, 2.0
// CHECK-NEXT: %b = gq.launch [@f_add_1_m1, @f_add_1_any] rows [1, -1] on(%x : tensor<?x32xbf16>)
// CHECK: func.return %a, %m, %b
func.func @two_readers(%x : tensor<?x32xbf16>, %w : tensor<1x32x64xf32>, %r : tensor<?x64xbf16>) -> (tensor<?x64xbf16>, tensor<?x64xbf16>, tensor<?x64xbf16>) {
  %y = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %a = fx.call "aten.add.Tensor"(%y, %r) : (tensor<?x64xbf16>, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  %m = fx.call "aten.mul.Tensor"(%a, 2.0 : f64) : (tensor<?x64xbf16>) -> tensor<?x64xbf16>
  %z = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %b = fx.call "aten.add.Tensor"(%z, 1.0 : f64) : (tensor<?x64xbf16>) -> tensor<?x64xbf16>
  func.return %a, %m, %b : tensor<?x64xbf16>, tensor<?x64xbf16>, tensor<?x64xbf16>
}

// What is left alone: a result of float32, a mask that is broadcast along rows, and what itself
// depends on the result.
// CHECK-LABEL: func.func @left
// CHECK-NEXT: %y = gq.launch [@f_m1, @f_any]
// CHECK-NEXT: "aten._to_copy.default"(%y)
// CHECK-NEXT: %z = gq.launch [@f_m1, @f_any]
// CHECK-NEXT: "aten.mul.Tensor"(%z, %mask)
// CHECK-NEXT: %u = gq.launch [@f_m1, @f_any]
// CHECK-NEXT: "aten.flip.default"(%u
// CHECK-NEXT: "aten.add.Tensor"(%u
func.func @left(%x : tensor<?x32xbf16>, %w : tensor<1x32x64xf32>, %mask : tensor<?x1xbf16>) -> (tensor<?x64xf32>, tensor<?x64xbf16>, tensor<?x64xbf16>) {
  %y = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %a = fx.call "aten._to_copy.default"(%y) {dtype = #fx.dtype<"float32">} : (tensor<?x64xbf16>) -> tensor<?x64xf32>
  %z = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %b = fx.call "aten.mul.Tensor"(%z, %mask) : (tensor<?x64xbf16>, tensor<?x1xbf16>) -> tensor<?x64xbf16>
  %u = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %f = fx.call "aten.flip.default"(%u, [0]) : (tensor<?x64xbf16>) -> tensor<?x64xbf16>
  %c = fx.call "aten.add.Tensor"(%u, %f) : (tensor<?x64xbf16>, tensor<?x64xbf16>) -> tensor<?x64xbf16>
  func.return %a, %b, %c : tensor<?x64xf32>, tensor<?x64xbf16>, tensor<?x64xbf16>
}

// Rows in other leading dimensions: the view comes after. A copy alone is left.
// CHECK-LABEL: func.func @viewed
// CHECK-NEXT: %z = gq.launch [@f_relu_add_m1, @f_relu_add_any] rows [1, -1] on(%x, %r : tensor<?x32xbf16>, tensor<2x?x64xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16> fused {
// CHECK: %z_2 = fx.call "aten.view.default"(%z, [2, -1, 64]) : (tensor<?x64xbf16>) -> tensor<2x?x64xbf16>
// CHECK-NEXT: %u = gq.launch [@f_m1, @f_any]
// CHECK-NEXT: %c = fx.call "aten.clone.default"(%u)
// CHECK-NEXT: func.return %z_2, %c
func.func @viewed(%x : tensor<?x32xbf16>, %w : tensor<1x32x64xf32>, %r : tensor<2x?x64xbf16>) -> (tensor<2x?x64xbf16>, tensor<?x64xbf16>) {
  %y = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %v = fx.call "aten.view.default"(%y, [2, -1, 64]) : (tensor<?x64xbf16>) -> tensor<2x?x64xbf16>
  %a = fx.call "aten.relu.default"(%v) : (tensor<2x?x64xbf16>) -> tensor<2x?x64xbf16>
  %d = fx.call "aten.clone.default"(%a) : (tensor<2x?x64xbf16>) -> tensor<2x?x64xbf16>
  %z = fx.call "aten.add.Tensor"(%d, %r) : (tensor<2x?x64xbf16>, tensor<2x?x64xbf16>) -> tensor<2x?x64xbf16>
  %u = gq.launch [@f_m1, @f_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%w : tensor<1x32x64xf32>) -> tensor<?x64xbf16>
  %c = fx.call "aten.clone.default"(%u) : (tensor<?x64xbf16>) -> tensor<?x64xbf16>
  func.return %z, %c : tensor<2x?x64xbf16>, tensor<?x64xbf16>
}

// Gate and up: rows of their weights alternate, 8 of each, for the narrowest tile has 16 columns.
// CHECK-LABEL: func.func @gate_up
// CHECK: gq.concat %g, %u panel = 8
// CHECK: gq.concat %bg, %bu panel = 8
// CHECK: %z = gq.launch [@h_silu_mul_m1, @h_silu_mul_any] {{.*}} -> tensor<?x32xbf16> fused {
// CHECK-NEXT: ^bb0(%y: tensor<?x64xbf16>):
// CHECK-NEXT: %{{.*}} = fx.call "aten.unflatten.int"(%y, -1, [4, 2, 8]) : (tensor<?x64xbf16>) -> tensor<?x4x2x8xbf16>
// CHECK: gq.yield
// CHECK: func.return %z
func.func @gate_up(%x : tensor<?x32xbf16>) -> tensor<?x32xbf16> {
  %g = gq.weight @g : tensor<32x32x!gq.block_scaled<1x32 : f32 : si8>>
  %u = gq.weight @u : tensor<32x32x!gq.block_scaled<1x32 : f32 : si8>>
  %bg = gq.weight @bg : tensor<32xbf16>
  %bu = gq.weight @bu : tensor<32xbf16>
  %w = gq.concat %g, %u : tensor<32x32x!gq.block_scaled<1x32 : f32 : si8>>, tensor<32x32x!gq.block_scaled<1x32 : f32 : si8>> -> tensor<64x32x!gq.block_scaled<1x32 : f32 : si8>>
  %b = gq.concat %bg, %bu : tensor<32xbf16>, tensor<32xbf16> -> tensor<64xbf16>
  %p, %s = gq.pack %w layout <lane_words, lanes = 64> : tensor<64x32x!gq.block_scaled<1x32 : f32 : si8>> -> tensor<1x8x64xi32>, tensor<1x1x64xf32>
  %y = gq.launch [@h_m1, @h_any] rows [1, -1] on(%x : tensor<?x32xbf16>) weights(%p, %s : tensor<1x8x64xi32>, tensor<1x1x64xf32>) bias(%b : tensor<64xbf16>) -> tensor<?x64xbf16>
  %gate, %up = fx.call "aten.split_with_sizes.default"(%y, [32, 32], -1) : (tensor<?x64xbf16>) -> (tensor<?x32xbf16>, tensor<?x32xbf16>)
  %a = fx.call "aten.silu.default"(%gate) : (tensor<?x32xbf16>) -> tensor<?x32xbf16>
  %z = fx.call "aten.mul.Tensor"(%a, %up) : (tensor<?x32xbf16>, tensor<?x32xbf16>) -> tensor<?x32xbf16>
  func.return %z : tensor<?x32xbf16>
}

tile.kernel @f_m1(%x: memref<?x32xbf16>, %w: memref<1x32x64xf32>, %y: memref<?x64xbf16>) tile<1, 64> attributes {summary = "y = x @ W.T"} {
  %c0 = arith.constant 0 : index
  %m = tile.program_id 0
  %acc = tile.full 0.0 : vector<1x64xf32>
  %t = tile.cast %acc : vector<1x64xf32> to vector<1x64xbf16>
  tile.store %t, %y[%m, %c0] : vector<1x64xbf16>, memref<?x64xbf16>
}

// A store in a loop, as any other.
tile.kernel @f_any(%x: memref<?x32xbf16>, %w: memref<1x32x64xf32>, %y: memref<?x64xbf16>) tile<8, 64> {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %c8 = arith.constant 8 : index
  %p = tile.program_id 0
  %m = arith.muli %p, %c8 : index
  scf.for %i = %c0 to %c8 step %c1 {
    %row = arith.addi %m, %i : index
    %acc = tile.full 0.0 : vector<1x64xf32>
    %t = tile.cast %acc : vector<1x64xf32> to vector<1x64xbf16>
    tile.store %t, %y[%row, %c0] : vector<1x64xbf16>, memref<?x64xbf16>
  }
}

tile.kernel @h_m1(%x: memref<?x32xbf16>, %w: memref<1x8x64xi32>, %s: memref<1x1x64xf32>, %b: memref<64xbf16>, %y: memref<?x64xbf16>) tile<1, 64> {
  %c0 = arith.constant 0 : index
  %m = tile.program_id 0
  %t = tile.full 0.0 : vector<1x64xf32>
  %r = tile.cast %t : vector<1x64xf32> to vector<1x64xbf16>
  tile.store %r, %y[%m, %c0] : vector<1x64xbf16>, memref<?x64xbf16>
}

tile.kernel @h_any(%x: memref<?x32xbf16>, %w: memref<1x8x64xi32>, %s: memref<1x1x64xf32>, %b: memref<64xbf16>, %y: memref<?x64xbf16>) tile<4, 16> {
  %c4 = arith.constant 4 : index
  %c16 = arith.constant 16 : index
  %p = tile.program_id 0
  %q = tile.program_id 1
  %m = arith.muli %p, %c4 : index
  %n = arith.muli %q, %c16 : index
  %t = tile.full 0.0 : vector<4x16xf32>
  %r = tile.cast %t : vector<4x16xf32> to vector<4x16xbf16>
  tile.store %r, %y[%m, %n] : vector<4x16xbf16>, memref<?x64xbf16>
}

// CHECK: tile.kernel @f_m1
// CHECK: tile.kernel @f_any
// CHECK-NOT: tile.kernel @h_m1
// CHECK: tile.kernel @f_silu_add_mul_m1(%x: memref<?x32xbf16>, %other0: memref<?x64xbf16>, %other1: memref<64xbf16>, %w: memref<1x32x64xf32>, %y: memref<?x64xbf16>) tile<1, 64> attributes {summary = "y = x @ W.T; then silu, add, mul"} {
// CHECK:      %acc = tile.full 0.000000e+00 : vector<1x64xf32>
// CHECK-NEXT: %other0_tile = tile.load %other0[%m, %c0] : memref<?x64xbf16> -> vector<1x64xbf16>
// CHECK-NEXT: %other0_tile_1 = tile.cast %other0_tile
// CHECK-NEXT: %other1_tile = tile.load %other1[%c0] : memref<64xbf16> -> vector<64xbf16>
// CHECK:      %silu = arith.divf %acc, %{{.*}}
// CHECK-NEXT: %add = arith.addf %other0_tile_1, %silu
// CHECK-NEXT: %{{.*}} = tile.broadcast %other1_tile_1
// CHECK-NEXT: %mul = arith.mulf %add, %{{.*}}
// CHECK-NEXT: %y_tile = tile.cast %mul : vector<1x64xf32> to vector<1x64xbf16>
// CHECK-NEXT: tile.store %y_tile, %y[%m, %c0]
// CHECK-NEXT: }
// CHECK: tile.kernel @f_silu_add_mul_any
// CHECK: scf.for
// CHECK: tile.load %other0[%row, %c0]
// CHECK: tile.store %{{.*}}, %y[%row, %c0]
// CHECK: tile.kernel @h_silu_mul_any({{.*}} %y: memref<?x32xbf16>) tile<4, 8> {
// CHECK:      %half = tile.take_panels %t panel = 8 part = 0 : vector<4x16xf32> to vector<4x8xf32>
// CHECK-NEXT: %half_1 = tile.take_panels %t panel = 8 part = 1
// CHECK-NEXT: %c2 = arith.constant 2 : index
// CHECK-NEXT: %n_1 = arith.divui %n, %c2 : index
// CHECK:      tile.store %{{.*}}, %y[%m, %n_1] : vector<4x8xbf16>, memref<?x32xbf16>
