// Every constraint of gq.store, by its number, and what work on weights looks like.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics --print-op-generic | filecheck %s --check-prefix GENERIC

// CHECK:      gq.materialize {
// CHECK-NEXT:   %w = gq.weight @fc.weight : tensor<64x32xf32>
// CHECK-NEXT:   %t = gq.transpose %w : tensor<64x32xf32> -> tensor<32x64xf32>
// CHECK-NEXT:   gq.store %t, %w to [@t, @w] : tensor<32x64xf32>, tensor<64x32xf32>
// CHECK-NEXT: }
// GENERIC:      "gq.materialize"() ({
// GENERIC:        "gq.store"(%t, %w) <{names = [@t, @w]}> : (tensor<32x64xf32>, tensor<64x32xf32>) -> ()
gq.materialize {
  %w = gq.weight @fc.weight : tensor<64x32xf32>
  %t = gq.transpose %w : tensor<64x32xf32> -> tensor<32x64xf32>
  gq.store %t, %w to [@t, @w] : tensor<32x64xf32>, tensor<64x32xf32>
}

// -----

// CHECK: gq.store C1: 1 tensors, 2 names
gq.materialize {
  %w = gq.weight @fc.weight : tensor<64x32xf32>
  gq.store %w to [@t, @w] : tensor<64x32xf32>
}
