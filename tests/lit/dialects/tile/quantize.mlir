// Quantizing a tile, with and without a scale of the whole tensor.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

%x, %t = "test.op"() : () -> (vector<4x64xf32>, vector<1xf32>)

// CHECK: %q, %s = tile.qcast %x by "floor" : vector<4x64xf32> -> vector<4x64xf6E2M3FN>, vector<4x2xf8E8M0FNU>
// GENERIC: %q, %s = "tile.qcast"(%x) <{rule = "floor"}> : (vector<4x64xf32>) -> (vector<4x64xf6E2M3FN>, vector<4x2xf8E8M0FNU>)
%q, %s = tile.qcast %x by "floor" : vector<4x64xf32> -> vector<4x64xf6E2M3FN>, vector<4x2xf8E8M0FNU>

// CHECK: %q4, %s4 = tile.qcast %x, %t by "amax" : vector<4x64xf32> -> vector<4x64xf4E2M1FN>, vector<4x4xf8E4M3FN>
// GENERIC: %q4, %s4 = "tile.qcast"(%x, %t) <{rule = "amax"}> : (vector<4x64xf32>, vector<1xf32>) -> (vector<4x64xf4E2M1FN>, vector<4x4xf8E4M3FN>)
%q4, %s4 = tile.qcast %x, %t by "amax" : vector<4x64xf32> -> vector<4x64xf4E2M1FN>, vector<4x4xf8E4M3FN>
