// Every other panel of columns of a tile.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK:   %b = tile.take_panels %a panel = 8 part = 1 : vector<2x32xf32> to vector<2x16xf32>
// GENERIC: %b = "tile.take_panels"(%a) <{panel = 8 : i64, part = 1 : i64}> : (vector<2x32xf32>) -> vector<2x16xf32>
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %c0 = arith.constant 0 : index
  %a = tile.full 1.0 : vector<2x32xf32>
  %b = tile.take_panels %a panel = 8 part = 1 : vector<2x32xf32> to vector<2x16xf32>
  tile.store %b, %y[%c0, %c0] : vector<2x16xf32>, memref<?x16xf32>
}
