// What the quantizing tile operation refuses, and the words it uses.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: tile.qcast C1: the tile must be f32 of rank 2, not vector<4x64xbf16>
%x = "test.op"() : () -> vector<4x64xbf16>
%q, %s = tile.qcast %x by "floor" : vector<4x64xbf16> -> vector<4x64xf4E2M1FN>, vector<4x2xf8E8M0FNU>

// -----

// CHECK: tile.qcast C1: the tile must be f32 of rank 2, not vector<64xf32>
%x = "test.op"() : () -> vector<64xf32>
%q, %s = tile.qcast %x by "floor" : vector<64xf32> -> vector<64xf4E2M1FN>, vector<2xf8E8M0FNU>

// -----

// CHECK: tile.qcast C2: codes (4, 32) and scales (4, 2) do not fit (4, 64)
%x = "test.op"() : () -> vector<4x64xf32>
%q, %s = tile.qcast %x by "floor" : vector<4x64xf32> -> vector<4x32xf4E2M1FN>, vector<4x2xf8E8M0FNU>

// -----

// CHECK: tile.qcast C2: codes (4, 64) and scales (4, 3) do not fit (4, 64)
%x = "test.op"() : () -> vector<4x64xf32>
%q, %s = tile.qcast %x by "floor" : vector<4x64xf32> -> vector<4x64xf4E2M1FN>, vector<4x3xf8E8M0FNU>

// -----

// CHECK: tile.qcast C3: ui4 has no codes of both signs
%x = "test.op"() : () -> vector<4x64xf32>
%q, %s = tile.qcast %x by "floor" : vector<4x64xf32> -> vector<4x64xui4>, vector<4x2xf8E8M0FNU>

// -----

// CHECK: tile.qcast C4: no rule amax gives scales in f8E8M0FNU
%x = "test.op"() : () -> vector<4x64xf32>
%q, %s = tile.qcast %x by "amax" : vector<4x64xf32> -> vector<4x64xf4E2M1FN>, vector<4x2xf8E8M0FNU>

// -----

// CHECK: tile.qcast C4: no rule floor gives scales in f16
%x = "test.op"() : () -> vector<4x64xf32>
%q, %s = tile.qcast %x by "floor" : vector<4x64xf32> -> vector<4x64xf4E2M1FN>, vector<4x2xf16>

// -----

// CHECK: tile.qcast C5: scales in f8E8M0FNU go without a tensor scale
%x, %t = "test.op"() : () -> (vector<4x64xf32>, vector<1xf32>)
%q, %s = tile.qcast %x, %t by "floor" : vector<4x64xf32> -> vector<4x64xf4E2M1FN>, vector<4x2xf8E8M0FNU>
