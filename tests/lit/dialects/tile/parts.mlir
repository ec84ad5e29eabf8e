// The sum of what programs of several parts have of one tile.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK:   %part = tile.program_id 2
// CHECK:   %b = tile.add_parts %a parts = 4 : vector<2x16xf32>
// GENERIC: %b = "tile.add_parts"(%a) <{parts = 4 : i64}> : (vector<2x16xf32>) -> vector<2x16xf32>
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %c0 = arith.constant 0 : index
  %part = tile.program_id 2
  %a = tile.full 1.0 : vector<2x16xf32>
  %b = tile.add_parts %a parts = 4 : vector<2x16xf32>
  tile.store %b, %y[%c0, %c0] : vector<2x16xf32>, memref<?x16xf32>
}
