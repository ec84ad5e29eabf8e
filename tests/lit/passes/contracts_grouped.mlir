// Every row of the contract "grouped" that refuses an operation, and its exceptions.
// RUN: gqc-opt %s -p 'verify-contract{stage=grouped}' --split-input-file --verify-diagnostics | filecheck %s

// CHECK: contract 'grouped': fx.call: a product with a stored weight is a gq.matmul_t after recognize-linears
func.func @linear(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'grouped': fx.call: a product with a stored weight is a gq.matmul_t after recognize-linears
func.func @transposed(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %t = fx.call "aten.t.default"(%w) : (tensor<8x32xf32>) -> tensor<32x8xf32>
  %y = fx.call "aten.mm.default"(%x, %t) : (tensor<?x32xf32>, tensor<32x8xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'grouped': fx.call: a product with a stored weight is a gq.matmul_t after recognize-linears
func.func @left(%x : tensor<32x?xf32>) -> tensor<8x?xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = fx.call "aten.mm.default"(%w, %x) : (tensor<8x32xf32>, tensor<32x?xf32>) -> tensor<8x?xf32>
  func.return %y : tensor<8x?xf32>
}

// -----

// CHECK: contract 'grouped': gq.weight: only gq.matmul_t may read a block-scaled value
func.func @codes_in_torch(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %y = fx.call "aten.relu.default"(%w) : (tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'grouped': gq.gather_channels: channels of activations lie along the last dimension, unshifted
func.func @tokens(%x : tensor<4x32xf32>, %i : tensor<4xi64>) {
  %y = gq.gather_channels %x by %i along 0 : tensor<4x32xf32>, tensor<4xi64> -> tensor<4x32xf32>
  func.return
}

// -----

// CHECK: contract 'grouped': gq.matmul_t: only legalize decides how a quantized layer is done
func.func @decided(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'grouped': gq.matmul_t: a layer that is kept reads block-scaled codes
func.func @kept(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %y = gq.matmul_t %x, %w decision <kept, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'grouped': gq.unpack: is not an operation of this stage
func.func @unpacked(%p : tensor<8x4xi32>, %s : tensor<1x8xf16>) {
  %w = gq.unpack %p, %s layout <k_words> : tensor<8x4xi32>, tensor<1x8xf16> -> tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  func.return
}

// -----

// What it allows: products of activations, of constants, and those that are more than x · Wᵀ + b.
// CHECK: func.func @exceptions
func.func @exceptions(%x : tensor<?x32xf32>, %v : tensor<8x32xf32>, %b : tensor<8xf32>) -> tensor<?x8xf32> {
  %y = fx.call "aten.linear.default"(%x, %v) : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  %w = gq.weight @w : tensor<8x32xf32>
  %a = gq.weight @a : tensor<4x32xf32>
  %c = fx.call "aten.linear.default"(%a, %w) : (tensor<4x32xf32>, tensor<8x32xf32>) -> tensor<4x8xf32>
  %t = fx.call "aten.t.default"(%w) : (tensor<8x32xf32>) -> tensor<32x8xf32>
  %z = fx.call "aten.addmm.default"(%b, %x, %t) {beta = 2 : i64} : (tensor<8xf32>, tensor<?x32xf32>, tensor<32x8xf32>) -> tensor<?x8xf32>
  func.return %z : tensor<?x8xf32>
}
