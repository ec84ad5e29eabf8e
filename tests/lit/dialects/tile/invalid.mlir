// What the tile operations refuse, and the words they use.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: tile.kernel C2: the output must have rank 2
tile.kernel @no_arguments() tile<1, 1> {
}

// -----

// CHECK: tile.kernel C1: arguments must be memrefs
tile.kernel @a_tensor(%x : tensor<4xf32>, %y : memref<4x4xf32>) tile<1, 1> {
}

// -----

// CHECK: tile.kernel C2: the output must have rank 2
tile.kernel @flat_output(%y : memref<4xf32>) tile<1, 1> {
}

// -----

// CHECK: tile.kernel C3: tile sizes must be positive
tile.kernel @no_tile(%y : memref<4x4xf32>) tile<0, 1> {
}

// -----

// CHECK: tile.kernel C3: there must be two tile sizes
"tile.kernel"() <{sym_name = "one_size", tile = array<i64: 16>}> ({
^bb0(%y: memref<4x4xf32>):
}) : () -> ()

// -----

// CHECK: tile.program_id C1: the axis must be 0, 1 or 2
%p = tile.program_id 3

// -----

// CHECK: tile.load C1: needs 2 offsets, has 1
%a, %i = "test.op"() : () -> (memref<4x4xf32>, index)
%t = tile.load %a[%i] : memref<4x4xf32> -> vector<4x4xf32>

// -----

// CHECK: tile.load C2: the tile's rank exceeds the array's
%a, %i = "test.op"() : () -> (memref<4xf32>, index)
%t = tile.load %a[%i] : memref<4xf32> -> vector<4x4xf32>

// -----

// CHECK: tile.load C3: the tile holds f32, the array f16
%a, %i = "test.op"() : () -> (memref<4xf16>, index)
%t = tile.load %a[%i] : memref<4xf16> -> vector<4xf32>

// -----

// CHECK: tile.store C1: needs 2 offsets, has 3
%t, %a, %i = "test.op"() : () -> (vector<4x4xf32>, memref<4x4xf32>, index)
tile.store %t, %a[%i, %i, %i] : vector<4x4xf32>, memref<4x4xf32>

// -----

// CHECK: tile.store C2: the tile's rank exceeds the array's
%t, %a, %i = "test.op"() : () -> (vector<4x4xf32>, memref<4xf32>, index)
tile.store %t, %a[%i] : vector<4x4xf32>, memref<4xf32>

// -----

// CHECK: tile.store C3: the tile holds f32, the array bf16
%t, %a, %i = "test.op"() : () -> (vector<4xf32>, memref<4xbf16>, index)
tile.store %t, %a[%i] : vector<4xf32>, memref<4xbf16>

// -----

// CHECK: tile.unpack C1: planes must be i32
%w = "test.op"() : () -> vector<4x2xi64>
%q = tile.unpack %w axis = 1 : (vector<4x2xi64>) -> vector<4x16xui4>

// -----

// CHECK: tile.unpack C2: ui3 has 2 planes, not 1
%w = "test.op"() : () -> vector<4x2xi32>
%q = tile.unpack %w axis = 1 : (vector<4x2xi32>) -> vector<4x32xui3>

// -----

// CHECK: tile.unpack C3: a plane of 4 bits must have shape (4, 2), not (4, 4)
%w = "test.op"() : () -> vector<4x4xi32>
%q = tile.unpack %w axis = 1 : (vector<4x4xi32>) -> vector<4x16xui4>

// -----

// The order of the planes is part of their meaning: low bits, the wider plane, come first.
// CHECK: tile.unpack C3: a plane of 2 bits must have shape (4, 2), not (4, 1)
%w2, %w1 = "test.op"() : () -> (vector<4x2xi32>, vector<4x1xi32>)
%q = tile.unpack %w1, %w2 axis = 1 : (vector<4x1xi32>, vector<4x2xi32>) -> vector<4x32xui3>

// -----

// Half a word is no word.
// CHECK: tile.unpack C3: 12 codes of 4 bits do not fill whole words
%w = "test.op"() : () -> vector<4x1xi32>
%q = tile.unpack %w axis = 1 : (vector<4x1xi32>) -> vector<4x12xui4>

// -----

// CHECK: tile.unpack C3: a tile of rank 2 has no axis 2
%w = "test.op"() : () -> vector<4x16xi32>
%q = tile.unpack %w axis = 2 : (vector<4x16xi32>) -> vector<4x16xui4>

// -----

// CHECK: tile.unpack C4: i4 is not an element format
%w = "test.op"() : () -> vector<4x2xi32>
%q = tile.unpack %w axis = 1 : (vector<4x2xi32>) -> vector<4x16xi4>

// -----

// CHECK: tile.unpack C5: triples is no order of codes
%w = "test.op"() : () -> vector<4x2xi32>
%q = tile.unpack %w axis = 1 order = "triples" : (vector<4x2xi32>) -> vector<4x16xui4>

// -----

// CHECK: tile.full C1: 0.5 does not fill vector<4x2xi32>
%a = tile.full 0.5 : vector<4x2xi32>

// -----

// Integers are summed, and multiplied, in i32 alone.
// CHECK: tile.sum C1: the result must be i32 of shape (4, 1)
%a = "test.op"() : () -> vector<4x32xsi8>
%b = tile.sum %a axis = 1 : vector<4x32xsi8> to vector<4x1xf32>

// -----

// CHECK: tile.dot C1: the accumulator and the result must be one i32 tile type
%c, %a, %b = "test.op"() : () -> (vector<4x16xf32>, vector<4x32xsi8>, vector<32x16xui4>)
%d = tile.dot %c, %a, %b : vector<4x32xsi8>, vector<32x16xui4> -> vector<4x16xf32>

// -----

// CHECK: tile.dot C3: operand types differ
%c, %a, %b = "test.op"() : () -> (vector<4x16xf32>, vector<4x32xf32>, vector<32x16xui4>)
%d = tile.dot %c, %a, %b : vector<4x32xf32>, vector<32x16xui4> -> vector<4x16xf32>

// -----

// CHECK: tile.cast C1: shapes must be equal
%a = "test.op"() : () -> vector<4x2xf32>
%b = tile.cast %a : vector<4x2xf32> to vector<2x4xf16>

// -----

// CHECK: tile.repeat C1: the result must have shape (4, 64)
%a = "test.op"() : () -> vector<4x2xf32>
%b = tile.repeat %a axis = 1 times = 32 : vector<4x2xf32> to vector<4x32xf32>

// -----

// CHECK: tile.repeat C1: a tile of rank 2 has no axis 2
%a = "test.op"() : () -> vector<4x2xf32>
%b = tile.repeat %a axis = 2 times = 32 : vector<4x2xf32> to vector<4x2xf32>

// -----

// CHECK: tile.broadcast C1: (16, 4) does not broadcast to (16, 64)
%a = "test.op"() : () -> vector<16x4xf32>
%b = tile.broadcast %a : vector<16x4xf32> to vector<16x64xf32>

// -----

// CHECK: tile.broadcast C1: (1, 1, 64) does not broadcast to (16, 64)
%a = "test.op"() : () -> vector<1x1x64xf32>
%b = tile.broadcast %a : vector<1x1x64xf32> to vector<16x64xf32>

// -----

// CHECK: tile.transpose C1: (4, 2) does not transpose to (4, 2)
%a = "test.op"() : () -> vector<4x2xf32>
%b = tile.transpose %a : vector<4x2xf32> to vector<4x2xf32>

// -----

// CHECK: tile.sum C1: the result must be f32 of shape (4, 1)
%a = "test.op"() : () -> vector<4x2xf32>
%b = tile.sum %a axis = 1 : vector<4x2xf32> to vector<1x2xf32>

// -----

// CHECK: tile.sum C1: the result must be f32 of shape (4, 1)
%a = "test.op"() : () -> vector<4x2xbf16>
%b = tile.sum %a axis = 1 : vector<4x2xbf16> to vector<4x1xbf16>

// -----

// CHECK: tile.sum C1: a tile of rank 2 has no axis 2
%a = "test.op"() : () -> vector<4x2xf32>
%b = tile.sum %a axis = 2 : vector<4x2xf32> to vector<4x2xf32>

// -----

// CHECK: tile.dot C1: the accumulator and the result must be one f32 tile type
%c, %a, %b = "test.op"() : () -> (vector<4x4xf16>, vector<4x8xf16>, vector<8x4xf16>)
%d = tile.dot %c, %a, %b : vector<4x8xf16>, vector<8x4xf16> -> vector<4x4xf16>

// -----

// CHECK: tile.dot C2: (4, 8) by (4, 8) does not fit (4, 4)
%c, %a, %b = "test.op"() : () -> (vector<4x4xf32>, vector<4x8xf16>, vector<4x8xf16>)
%d = tile.dot %c, %a, %b : vector<4x8xf16>, vector<4x8xf16> -> vector<4x4xf32>

// -----

// CHECK: tile.dot C2: (8,) by (8, 4) does not fit (4,)
%c, %a, %b = "test.op"() : () -> (vector<4xf32>, vector<8xf16>, vector<8x4xf16>)
%d = tile.dot %c, %a, %b : vector<8xf16>, vector<8x4xf16> -> vector<4xf32>

// -----

// CHECK: tile.dot C3: operand types differ
%c, %a, %b = "test.op"() : () -> (vector<4x4xf32>, vector<4x8xf16>, vector<8x4xbf16>)
%d = tile.dot %c, %a, %b : vector<4x8xf16>, vector<8x4xbf16> -> vector<4x4xf32>

// -----

// CHECK: tile.max C1: the result must be f32 of shape (4, 1)
%t = "test.op"() : () -> vector<4x8xf32>
%m = tile.max %t axis = 1 : vector<4x8xf32> to vector<1x8xf32>

// -----

// CHECK: tile.max C2: the source must be f32
%t = "test.op"() : () -> vector<4x8xf16>
%m = tile.max %t axis = 1 : vector<4x8xf16> to vector<4x1xf32>

// -----

// CHECK: tile.max C1: a tile of rank 2 has no axis 2
%t = "test.op"() : () -> vector<4x8xf32>
%m = tile.max %t axis = 2 : vector<4x8xf32> to vector<4x8xf32>
