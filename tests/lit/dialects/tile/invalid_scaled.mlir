// What the operations on codes of narrow floats refuse.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: tile.bitcast C1: needs bytes (i8) and codes, has f8E4M3FN and f4E2M1FN
%a = "test.op"() : () -> vector<4x8xf8E4M3FN>
%b = tile.bitcast %a : vector<4x8xf8E4M3FN> to vector<4x16xf4E2M1FN>

// -----

// CHECK: tile.bitcast C1: needs bytes (i8) and codes, has i8 and i8
%a = "test.op"() : () -> vector<4x8xi8>
%b = tile.bitcast %a : vector<4x8xi8> to vector<4x8xi8>

// -----

// CHECK: tile.bitcast C2: vector<4x8xi8> and vector<4x8xf4E2M1FN> do not hold the same bits
%a = "test.op"() : () -> vector<4x8xi8>
%b = tile.bitcast %a : vector<4x8xi8> to vector<4x8xf4E2M1FN>

// -----

// CHECK: tile.bitcast C2: vector<4x8xi8> and vector<8x8xf4E2M1FN> do not hold the same bits
%a = "test.op"() : () -> vector<4x8xi8>
%b = tile.bitcast %a : vector<4x8xi8> to vector<8x8xf4E2M1FN>

// -----

// CHECK: tile.widen C1: shapes must be equal
%a = "test.op"() : () -> vector<4x8xf4E2M1FN>
%b = tile.widen %a : vector<4x8xf4E2M1FN> to vector<4x4xf8E4M3FN>

// -----

// CHECK: tile.widen C2: the fields of f8E4M3FN are not among those of f6E2M3FN
%a = "test.op"() : () -> vector<4x8xf8E4M3FN>
%b = tile.widen %a : vector<4x8xf8E4M3FN> to vector<4x8xf6E2M3FN>

// -----

// The range of e2m3 is narrower, its fraction is not.
// CHECK: tile.widen C2: the fields of f6E2M3FN are not among those of f8E5M2
%a = "test.op"() : () -> vector<4x8xf6E2M3FN>
%b = tile.widen %a : vector<4x8xf6E2M3FN> to vector<4x8xf8E5M2>

// -----

// CHECK: tile.widen C2: the fields of ui4 are not among those of f8E4M3FN
%a = "test.op"() : () -> vector<4x8xui4>
%b = tile.widen %a : vector<4x8xui4> to vector<4x8xf8E4M3FN>

// -----

// CHECK: tile.reshape C1: (4, 8) does not reshape to (4, 2, 2)
%a = "test.op"() : () -> vector<4x8xf32>
%b = tile.reshape %a : vector<4x8xf32> to vector<4x2x2xf32>

// -----

// CHECK: tile.permute C1: (0, 0) is no order of 2 axes
%a = "test.op"() : () -> vector<4x8xf32>
%b = tile.permute %a order = [0, 0] : vector<4x8xf32> to vector<4x4xf32>

// -----

// CHECK: tile.permute C2: the result must have shape (8, 4)
%a = "test.op"() : () -> vector<4x8xf32>
%b = tile.permute %a order = [1, 0] : vector<4x8xf32> to vector<4x8xf32>

// -----

// CHECK: tile.dot_scaled C1: the accumulator and the result must be one f32 tile type
%c, %a, %s, %b = "test.op"() : () -> (vector<4x4xf16>, vector<4x32xf8E4M3FN>, vector<4x1xf8E8M0FNU>, vector<32x4xf8E4M3FN>)
%d = tile.dot_scaled %c, %a, %s, %b, %s : (vector<4x4xf16>, vector<4x32xf8E4M3FN>, vector<4x1xf8E8M0FNU>, vector<32x4xf8E4M3FN>, vector<4x1xf8E8M0FNU>) -> vector<4x4xf16>

// -----

// CHECK: tile.dot_scaled C2: (4, 32) by (4, 32) does not fit (4, 4)
%c, %a, %s = "test.op"() : () -> (vector<4x4xf32>, vector<4x32xf8E4M3FN>, vector<4x1xf8E8M0FNU>)
%d = tile.dot_scaled %c, %a, %s, %a, %s : (vector<4x4xf32>, vector<4x32xf8E4M3FN>, vector<4x1xf8E8M0FNU>, vector<4x32xf8E4M3FN>, vector<4x1xf8E8M0FNU>) -> vector<4x4xf32>

// -----

// CHECK: tile.dot_scaled C3: i8 is no format of floats
%c, %a, %s, %b = "test.op"() : () -> (vector<4x4xf32>, vector<4x32xi8>, vector<4x1xf8E8M0FNU>, vector<32x4xi8>)
%d = tile.dot_scaled %c, %a, %s, %b, %s : (vector<4x4xf32>, vector<4x32xi8>, vector<4x1xf8E8M0FNU>, vector<32x4xi8>, vector<4x1xf8E8M0FNU>) -> vector<4x4xf32>

// -----

// CHECK: tile.dot_scaled C4: scales must be of one format of f8E8M0FNU, f8E4M3FN, not f8E8M0FNU and f8E4M3FN
%c, %a, %s, %b, %t = "test.op"() : () -> (vector<4x4xf32>, vector<4x32xf4E2M1FN>, vector<4x2xf8E8M0FNU>, vector<32x4xf4E2M1FN>, vector<4x2xf8E4M3FN>)
%d = tile.dot_scaled %c, %a, %s, %b, %t : (vector<4x4xf32>, vector<4x32xf4E2M1FN>, vector<4x2xf8E8M0FNU>, vector<32x4xf4E2M1FN>, vector<4x2xf8E4M3FN>) -> vector<4x4xf32>

// -----

// The right scale has N rows, K/B columns, as the left one has.
// CHECK: tile.dot_scaled C5: scales (4, 2) and (2, 4) do not fit (4, 64) by (64, 4)
%c, %a, %s, %b, %t = "test.op"() : () -> (vector<4x4xf32>, vector<4x64xf8E4M3FN>, vector<4x2xf8E8M0FNU>, vector<64x4xf8E4M3FN>, vector<2x4xf8E8M0FNU>)
%d = tile.dot_scaled %c, %a, %s, %b, %t : (vector<4x4xf32>, vector<4x64xf8E4M3FN>, vector<4x2xf8E8M0FNU>, vector<64x4xf8E4M3FN>, vector<2x4xf8E8M0FNU>) -> vector<4x4xf32>
