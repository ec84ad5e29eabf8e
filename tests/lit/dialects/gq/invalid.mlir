// What the gq operations and attributes refuse, and the words they use.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: gq.weight C1: weights are static
%w = gq.weight @fc.weight : tensor<?x8xf32>

// -----

// CHECK: gq.qcast C1: blocks do not divide tensor<4x24x!gq.block_scaled<1x16 : f16 : ui4>>
%w = gq.weight @fc.weight : tensor<4x24xf32>
%q = gq.qcast %w by "rtn" "minmax" : tensor<4x24xf32> -> tensor<4x24x!gq.block_scaled<1x16 : f16 : ui4>>

// -----

// CHECK: gq.qcast C1: blocks do not divide tensor<4x32x!gq.block_scaled<16 : f16 : ui4>>
%w = gq.weight @fc.weight : tensor<4x32xf32>
%q = gq.qcast %w by "rtn" "minmax" : tensor<4x32xf32> -> tensor<4x32x!gq.block_scaled<16 : f16 : ui4>>

// -----

// CHECK: gq.qcast C1: tensor<4x32xf32> is not block-scaled
%w = gq.weight @fc.weight : tensor<4x32xf32>
%q = gq.qcast %w by "rtn" "minmax" : tensor<4x32xf32> -> tensor<4x32xf32>

// -----

// CHECK: gq.qcast C2: shapes differ
%w = gq.weight @fc.weight : tensor<4x32xf32>
%q = gq.qcast %w by "rtn" "minmax" : tensor<4x32xf32> -> tensor<4x16x!gq.block_scaled<1x16 : f16 : ui4>>

// -----

// CHECK: gq.qcast C3: tensor<4x32xi8> does not hold floats
%w = gq.weight @fc.weight : tensor<4x32xi8>
%q = gq.qcast %w by "rtn" "minmax" : tensor<4x32xi8> -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>

// -----

// CHECK: gq.qcast C4: !gq.block_scaled<1x16 : f16 : ui4> has no tensor scale
%w, %s = "test.op"() : () -> (tensor<4x32xf32>, tensor<1xf32>)
%q = gq.qcast %w scale %s by "rtn" "minmax" : tensor<4x32xf32> -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>

// -----

// CHECK: gq.dcast C4: a tensor scale of tensor<4x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> is a second result
%q = "test.op"() : () -> tensor<4x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
%d = gq.dcast %q : tensor<4x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> -> tensor<4x32xf32>

// -----

// CHECK: gq.dcast C4: a tensor scale of tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> is a second result
%q = "test.op"() : () -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>
%d, %s = gq.dcast %q : tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> -> tensor<4x32xf32>, tensor<1xf32>

// -----

// CHECK: gq.tensor_scale C1: !gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN> has no tensor scale
%x = "test.op"() : () -> tensor<4x32xf32>
%s = gq.tensor_scale %x for <1x32 : f8E8M0FNU : f4E2M1FN> : tensor<4x32xf32>

// -----

// CHECK: gq.tensor_scale C2: tensor<4x32xi8> does not hold floats
%x = "test.op"() : () -> tensor<4x32xi8>
%s = gq.tensor_scale %x for <1x16 : f8E4M3FN : f4E2M1FN, global = f32> : tensor<4x32xi8>

// -----

// CHECK: gq.launch C3: needs an input and a result
%x = "test.op"() : () -> tensor<4x32xf32>
"gq.launch"(%x) <{kernels = [@mm_any], rows = array<i64: -1>, operandSegmentSizes = array<i32: 1, 0, 0>}> : (tensor<4x32xf32>) -> ()

// -----

// CHECK: gq.dcast C1: tensor<4x32xf16> is not block-scaled
%w = gq.weight @fc.weight : tensor<4x32xf16>
%d = gq.dcast %w : tensor<4x32xf16> -> tensor<4x32xf32>

// -----

// CHECK: gq.dcast C2: shapes differ
%q = "test.op"() : () -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>
%d = gq.dcast %q : tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> -> tensor<32x4xf32>

// -----

// CHECK: gq.dcast C3: tensor<4x32xi8> does not hold floats
%q = "test.op"() : () -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>
%d = gq.dcast %q : tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> -> tensor<4x32xi8>

// -----

// CHECK: gq.transpose C1: tensor<4x32xf32> does not transpose to tensor<4x32xf32>
%w = gq.weight @fc.weight : tensor<4x32xf32>
%t = gq.transpose %w : tensor<4x32xf32> -> tensor<4x32xf32>

// -----

// CHECK: gq.transpose C1: tensor<2x3x2xf32> does not transpose to tensor<2x3x2xf32>
%w = gq.weight @fc.weight : tensor<2x3x2xf32>
%t = gq.transpose %w : tensor<2x3x2xf32> -> tensor<2x3x2xf32>

// -----

// The scaled axis may not move.
// CHECK: gq.transpose C2: tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> does not hold floats
%q = "test.op"() : () -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>
%t = gq.transpose %q : tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> -> tensor<32x4x!gq.block_scaled<1x4 : f16 : ui4>>

// -----

// CHECK: gq.transpose C2: elements differ
%w = gq.weight @fc.weight : tensor<4x32xf32>
%t = gq.transpose %w : tensor<4x32xf32> -> tensor<32x4xbf16>

// -----

// CHECK: gq.matmul_t C1: the weight is tensor<4x8x8xf32>
%x, %w = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x8x8xf32>)
%y = gq.matmul_t %x, %w : (tensor<2x8xf32>, tensor<4x8x8xf32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.matmul_t C1: the weight is tensor<?x8xf32>
%x, %w = "test.op"() : () -> (tensor<2x8xf32>, tensor<?x8xf32>)
%y = gq.matmul_t %x, %w : (tensor<2x8xf32>, tensor<?x8xf32>) -> tensor<2x?xf32>

// -----

// CHECK: gq.matmul_t C2: x is tensor<2x6xf32>, the weight tensor<4x8xf32>
%x, %w = "test.op"() : () -> (tensor<2x6xf32>, tensor<4x8xf32>)
%y = gq.matmul_t %x, %w : (tensor<2x6xf32>, tensor<4x8xf32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.matmul_t C3: the result is tensor<2x8xf32>, not tensor<2x4xf32>
%x, %w = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x8xf32>)
%y = gq.matmul_t %x, %w : (tensor<2x8xf32>, tensor<4x8xf32>) -> tensor<2x8xf32>

// -----

// CHECK: gq.matmul_t C4: the bias is tensor<2x4xf32>, not one of [4]
%x, %w, %b = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x8xf32>, tensor<2x4xf32>)
%y = gq.matmul_t %x, %w bias %b : (tensor<2x8xf32>, tensor<4x8xf32>, tensor<2x4xf32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.matmul_t C5: blocks do not divide tensor<4x8x!gq.block_scaled<1x16 : f16 : ui4>>
%x, %w = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x8x!gq.block_scaled<1x16 : f16 : ui4>>)
%y = gq.matmul_t %x, %w : (tensor<2x8xf32>, tensor<4x8x!gq.block_scaled<1x16 : f16 : ui4>>) -> tensor<2x4xf32>

// -----

// CHECK: gq.pack C1: tensor<4x32xf32> is not block-scaled
%w = gq.weight @fc.weight : tensor<4x32xf32>
%p = gq.pack %w layout <k_words> : tensor<4x32xf32> -> tensor<4x4xi32>

// -----

// CHECK: gq.pack C2: parts must be (tensor<4x4xi32>, tensor<2x4xf16>)
%q = "test.op"() : () -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>
%p, %s = gq.pack %q layout <k_words> : tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>> -> tensor<4x4xi32>, tensor<4x2xf16>

// -----

// CHECK: gq.pack C3: the weight must be static, of rank 2, in blocks of one row, not tensor<32x32x!gq.block_scaled<16x16 : f16 : ui4>>
%q = "test.op"() : () -> tensor<32x32x!gq.block_scaled<16x16 : f16 : ui4>>
%p = gq.pack %q layout <k_words> : tensor<32x32x!gq.block_scaled<16x16 : f16 : ui4>> -> tensor<32x4xi32>

// -----

// CHECK: gq.unpack C1: tensor<4x32xf32> is not block-scaled
%p = gq.weight @fc.weight : tensor<4x4xi32>
%w = gq.unpack %p layout <k_words> : tensor<4x4xi32> -> tensor<4x32xf32>

// -----

// CHECK: gq.unpack C2: parts must be (tensor<1x4x16xi32>, tensor<1x2x16xf16>)
%p, %s = "test.op"() : () -> (tensor<4x4xi32>, tensor<4x2xf16>)
%q = gq.unpack %p, %s layout <lane_words, lanes = 16> : tensor<4x4xi32>, tensor<4x2xf16> -> tensor<4x32x!gq.block_scaled<1x16 : f16 : ui4>>

// -----

// CHECK: gq.unpack C3: the weight must be static, of rank 2, in blocks of one row, not tensor<32x!gq.block_scaled<16 : f16 : ui4>>
%p = gq.weight @fc.weight : tensor<4xi32>
%q = gq.unpack %p layout <k_words> : tensor<4xi32> -> tensor<32x!gq.block_scaled<16 : f16 : ui4>>

// -----

// CHECK: gq.launch C1: one kernel for each bucket
%x, %p = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x1xi32>)
%y = gq.launch [@a, @b] rows [-1] on (%x : tensor<2x8xf32>) weights (%p : tensor<4x1xi32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.launch C4: what is fused must take the launch's inputs and yield
%x, %p, %r = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x1xi32>, tensor<2x4xf32>)
%y = gq.launch [@a] rows [-1] on (%x, %r : tensor<2x8xf32>, tensor<2x4xf32>) weights (%p : tensor<4x1xi32>) -> tensor<2x4xf32> fused {
^bb0(%product : tensor<2x4xf32>, %other : tensor<2x3xf32>):
  gq.yield %product : tensor<2x4xf32>
}

// -----

// CHECK: gq.launch C4: what is fused must take the launch's inputs and yield
%x = "test.op"() : () -> tensor<2x8xf32>
%y = gq.launch [@a] rows [-1] on (%x : tensor<2x8xf32>) -> tensor<2x8xf32> fused {
^bb0(%x_1 : tensor<2x8xf32>, %other : tensor<2x8xf32>):
  gq.yield %x_1 : tensor<2x8xf32>
}

// -----

// CHECK: gq.launch C2: buckets [16, 16, -1] must rise and end unbounded (-1)
%x, %p = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x1xi32>)
%y = gq.launch [@a, @b, @c] rows [16, 16, -1] on (%x : tensor<2x8xf32>) weights (%p : tensor<4x1xi32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.launch C2: buckets [16, 64] must rise and end unbounded (-1)
%x, %p = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x1xi32>)
%y = gq.launch [@a, @b] rows [16, 64] on (%x : tensor<2x8xf32>) weights (%p : tensor<4x1xi32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.launch C2: buckets [0, -1] must rise and end unbounded (-1)
%x, %p = "test.op"() : () -> (tensor<2x8xf32>, tensor<4x1xi32>)
%y = gq.launch [@a, @b] rows [0, -1] on (%x : tensor<2x8xf32>) weights (%p : tensor<4x1xi32>) -> tensor<2x4xf32>

// -----

// CHECK: gq.schedule C1: sizes must be positive
"test.op"() {a = #gq.schedule<rows = 0, tile = 1x64x32, scale = after, warps = 1, stages = 1>} : () -> ()

// -----

// CHECK: gq.schedule C1: sizes must be positive
"test.op"() {a = #gq.schedule<rows = *, tile = 1x0x32, scale = after, warps = 1, stages = 1>} : () -> ()

// -----

// CHECK: gq.schedule C1: sizes must be positive
"test.op"() {a = #gq.schedule<rows = 1, tile = 1x64x32, scale = after, warps = 1, stages = 1, parts = 0>} : () -> ()

// -----

// CHECK: gq.schedule C1: the tile must have three sizes, MxNxK
"test.op"() {a = #gq.schedule<rows = *, tile = 64x32, scale = after, warps = 1, stages = 1>} : () -> ()

// -----

// CHECK: gq.layout C2: lanes must be positive
"test.op"() {a = #gq.layout<lane_words, lanes = 0>} : () -> ()

// -----

// Names outside the tables are errors of the parser.
// CHECK: Expected one of 'bytes', 'k_words', 'lane_quads', 'lane_words'
"test.op"() {a = #gq.layout<row_words>} : () -> ()

// -----

// CHECK: Expected one of 'emulated', 'kept', 'native'
"test.op"() {a = #gq.decision<guessed, "why">} : () -> ()

// -----

// CHECK: Expected one of 'after', 'before'
"test.op"() {a = #gq.schedule<rows = 1, tile = 1x64x32, scale = during, warps = 1, stages = 1>} : () -> ()

// -----

// CHECK: gq.fused C1: the body's arguments must be those of the inputs
func.func @f(%x : tensor<?x8xf32>) {
  %y = gq.fused %x : tensor<?x8xf32> -> tensor<?x8xf32> {
  ^bb0(%a : tensor<?x8xf16>):
    gq.yield %a : tensor<?x8xf16>
  }
  func.return
}

// -----

// CHECK: gq.fused C2: the body must end in gq.yield of tensor<?x8xf32>
func.func @f(%x : tensor<?x8xf16>) {
  %y = gq.fused %x : tensor<?x8xf16> -> tensor<?x8xf32> {
  ^bb0(%a : tensor<?x8xf16>):
    gq.yield %a : tensor<?x8xf16>
  }
  func.return
}
