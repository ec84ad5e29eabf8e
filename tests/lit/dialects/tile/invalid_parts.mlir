// Every constraint of tile.add_parts, by its number, and that of its place in a kernel.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: tile.add_parts C1: there must be two parts or more
%a = "test.op"() : () -> vector<2x16xf32>
%b = tile.add_parts %a parts = 1 : vector<2x16xf32>

// -----

// CHECK: tile.add_parts C2: the tile must be f32
%a = "test.op"() : () -> vector<2x16xi32>
%b = tile.add_parts %a parts = 2 : vector<2x16xi32>

// -----

// CHECK: tile.kernel C4: a sum of parts must be the only one, and at the top
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %a = tile.full 1.0 : vector<2x16xf32>
  %b = tile.add_parts %a parts = 2 : vector<2x16xf32>
  %c = tile.add_parts %b parts = 2 : vector<2x16xf32>
}

// -----

// CHECK: tile.kernel C4: a sum of parts must be the only one, and at the top
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %c0 = arith.constant 0 : index
  %c1 = arith.constant 1 : index
  %a = tile.full 1.0 : vector<2x16xf32>
  scf.for %i = %c0 to %c1 step %c1 {
    %b = tile.add_parts %a parts = 2 : vector<2x16xf32>
  }
}
