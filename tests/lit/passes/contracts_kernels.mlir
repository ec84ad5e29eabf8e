// Every row of the contract "kernels" that refuses an operation.
// RUN: gqc-opt %s -p 'verify-contract{stage=kernels}' --split-input-file --verify-diagnostics | filecheck %s

// CHECK: contract 'kernels': fx.call: a product with a stored weight is a gq.matmul_t after recognize-linears
func.func @linear(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.weight: a quantized weight is not packed
func.func @quantized(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %y = gq.matmul_t %x, %w decision <native, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.matmul_t: no decision says how it is done
func.func @undecided(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.matmul_t: a native product reads block-scaled codes on both sides
func.func @half_native(%x : tensor<?x32xf32>, %w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32> {
  %y = gq.matmul_t %x, %w decision <native, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.matmul_t: reads block-scaled codes without a gq.dcast
func.func @emulated(%x : tensor<?x32xf32>, %w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32> {
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.matmul_t: an emulated product reads a decoded weight, and a kept one a dense weight
func.func @emulated_dense(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.matmul_t: a quantized product is a gq.launch after lower-to-tile
func.func @product(%x : tensor<4x32x!gq.block_scaled<1x32 : f16 : si4>>, %w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<4x8xf32> {
  %y = gq.matmul_t %x, %w decision <native, "why"> : (tensor<4x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<4x8xf32>
  func.return %y : tensor<4x8xf32>
}

// -----

// CHECK: contract 'kernels': gq.qcast: is left to do when the model runs
func.func @quantizer(%x : tensor<4x32xf32>) {
  %q = gq.qcast %x by "rtn" "no_clip" : tensor<4x32xf32> -> tensor<4x32x!gq.block_scaled<1x32 : f16 : si4>>
  func.return
}

// -----

// CHECK: contract 'kernels': gq.launch: reads parts of a weight that are not stored
func.func @computed(%x : tensor<?x32xf32>, %w : tensor<8x32xf32>) {
  %y = gq.launch [@mm] rows [-1] on (%x : tensor<?x32xf32>) weights (%w : tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return
}
tile.kernel @mm(%x : memref<?x32xf32>, %y : memref<?x8xf32>) tile<16, 8> {}

// -----

// CHECK: contract 'kernels': gq.launch: launches a kernel that the module does not hold
func.func @missing(%x : tensor<?x32xf32>) {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.launch [@mm] rows [-1] on (%x : tensor<?x32xf32>) weights (%w : tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return
}

// -----

// What it allows: launches, and layers that are kept.
// CHECK: func.func @allowed
func.func @allowed(%x : tensor<?x32xf32>) {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.launch [@mm] rows [-1] on (%x : tensor<?x32xf32>) weights (%w : tensor<8x32xf32>) -> tensor<?x8xf32>
  %z = gq.matmul_t %x, %w decision <kept, "why"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return
}
tile.kernel @mm(%x : memref<?x32xf32>, %y : memref<?x8xf32>) tile<16, 8> {}
