// Every constraint of tile.take_panels, by its number.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: tile.take_panels C1: (2, 24) is not of pairs of panels of 8 columns
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %a = tile.full 1.0 : vector<2x24xf32>
  %b = tile.take_panels %a panel = 8 part = 0 : vector<2x24xf32> to vector<2x12xf32>
}

// -----

// CHECK: tile.take_panels C2: the result must be vector<2x8xf32>
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %a = tile.full 1.0 : vector<2x16xf32>
  %b = tile.take_panels %a panel = 8 part = 0 : vector<2x16xf32> to vector<2x4xf32>
}

// -----

// CHECK: tile.take_panels C3: the part must be 0 or 1
tile.kernel @f(%y: memref<?x16xf32>) tile<2, 16> {
  %a = tile.full 1.0 : vector<2x16xf32>
  %b = tile.take_panels %a panel = 8 part = 2 : vector<2x16xf32> to vector<2x8xf32>
}
