// Every constraint of gq.concat, by its number.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: gq.concat C1: sources and result differ
func.func @elements(%a : tensor<4x32xf32>, %b : tensor<4x32xbf16>) {
  %w = gq.concat %a, %b : tensor<4x32xf32>, tensor<4x32xbf16> -> tensor<8x32xf32>
  func.return
}

// -----

// CHECK: gq.concat C2: [4, 4] rows are not 9
func.func @rows(%a : tensor<4x32xf32>) {
  %w = gq.concat %a, %a : tensor<4x32xf32>, tensor<4x32xf32> -> tensor<9x32xf32>
  func.return
}

// -----

// CHECK: gq.concat C3: [4, 8] rows are no whole panels of 4
func.func @panels(%a : tensor<4xf32>, %b : tensor<8xf32>) {
  %w = gq.concat %a, %b panel = 4 : tensor<4xf32>, tensor<8xf32> -> tensor<12xf32>
  func.return
}
