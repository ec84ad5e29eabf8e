// Every row of the contract "imported" that refuses an operation.
// RUN: gqc-opt %s -p 'verify-contract{stage=imported}' --split-input-file --verify-diagnostics | filecheck %s

// CHECK: contract 'imported': gq.weight: weights are quantized by later passes
func.func @quantized(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %y = gq.matmul_t %x, %w : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'imported': gq.matmul_t: only later passes decide how it is done
func.func @decided(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %y = gq.matmul_t %x, %w decision <kept, "why"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %y : tensor<?x8xf32>
}

// -----

// CHECK: contract 'imported': gq.qcast: is not an operation of this stage
func.func @cast(%x : tensor<?x32xf32>) {
  %w = gq.weight @w : tensor<8x32xf32>
  %q = gq.qcast %w by "rtn" "no_clip" : tensor<8x32xf32> -> tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  func.return
}

// -----

// CHECK: contract 'imported': arith.constant: is not an operation of this stage
func.func @stray() {
  %c = arith.constant 0 : index
  func.return
}

// -----

// What the contract allows.
// CHECK: func.func @allowed
func.func @allowed(%x : tensor<?x32xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @w : tensor<8x32xf32>
  %v = gq.weight @v : tensor<32x8xf32>
  %t = gq.transpose %v : tensor<32x8xf32> -> tensor<8x32xf32>
  %y = gq.matmul_t %x, %t : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  %z = fx.call "aten.linear.default"(%x, %w) : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  func.return %z : tensor<?x8xf32>
}
