// Every row of the contract "legal" that refuses an operation.
// RUN: gqc-opt %s -p 'verify-contract{stage=legal}' --split-input-file --verify-diagnostics | filecheck %s

// CHECK: contract 'legal': fx.call: a product with a stored weight is a gq.matmul_t after recognize-linears
func.func @linear(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'legal': gq.matmul_t: no decision says how it is done
func.func @undecided(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'legal': gq.matmul_t: a native product reads block-scaled codes on both sides
func.func @half_native(%x : tensor<?x32xf32>, %w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32> {
  %y = gq.matmul_t %x, %w decision <native, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'legal': gq.matmul_t: reads block-scaled codes without a gq.dcast
func.func @emulated(%x : tensor<?x32xf32>, %w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32> {
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'legal': gq.matmul_t: an emulated product reads a decoded weight, and a kept one a dense weight
func.func @emulated_dense(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'legal': gq.matmul_t: no schedule says by which tiles
func.func @unscheduled(%x : tensor<?x32xf32>, %p : tensor<8x4xi32>, %s : tensor<1x8xf16>) -> tensor<?x8xf32> {
  %u = gq.unpack %p, %s layout <k_words> : tensor<8x4xi32>, tensor<1x8xf16> -> tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %d = gq.dcast %u : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<8x32xf32>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'legal': gq.weight: a quantized weight is read before it is packed
func.func @unpacked() {
  %w = gq.weight @w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %d = gq.dcast %w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<8x32xf32>
  func.return
}

// -----

// CHECK: contract 'legal': gq.scale_channels: channels of activations are changed by torch's calls after lower-channels
func.func @scaled(%x : tensor<?x32xf32>, %f : tensor<32xf32>) {
  %y = gq.scale_channels %x by %f along 1 : tensor<?x32xf32>, tensor<32xf32> -> tensor<?x32xf32>
  func.return
}

// -----

// CHECK: contract 'legal': gq.launch: is not an operation of this stage
func.func @launched(%x : tensor<?x32xf32>, %w : tensor<8x32xf32>) {
  %y = gq.launch [@mm] rows [-1] on (%x : tensor<?x32xf32>) weights (%w : tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return
}

// -----

// What it allows, but for schedules: a kept layer.
// CHECK: func.func @kept
func.func @kept(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.matmul_t %x, %w decision <kept, "why"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}
