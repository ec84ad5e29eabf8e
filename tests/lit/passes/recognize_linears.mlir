// recognize-linears: every way torch spells x · Wᵀ + b becomes gq.matmul_t.
// RUN: gqc-opt %s -p recognize-linears | filecheck %s

// The plain case.
// CHECK-LABEL: func.func @linear
// CHECK-NEXT:    %w = gq.weight @fc.weight : tensor<4x8xf32>
// CHECK-NEXT:    %b = gq.weight @fc.bias : tensor<4xf32>
// CHECK-NEXT:    %y = gq.matmul_t %x, %w bias %b : (tensor<2x?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<2x?x4xf32>
// CHECK-NEXT:    func.return %y
func.func @linear(%x : tensor<2x?x8xf32>) -> tensor<2x?x4xf32> {
  %w = gq.weight @fc.weight : tensor<4x8xf32>
  %b = gq.weight @fc.bias : tensor<4xf32>
  %y = fx.call "aten.linear.default"(%x, %w, %b) : (tensor<2x?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<2x?x4xf32>
  func.return %y : tensor<2x?x4xf32>
}

// Without a bias, left out or None.
// CHECK-LABEL: func.func @linear_without_bias
// CHECK-NEXT:    %w = gq.weight @fc.weight
// CHECK-NEXT:    %y = gq.matmul_t %x, %w : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
// CHECK-NEXT:    %z = gq.matmul_t %y, %w : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
func.func @linear_without_bias(%x : tensor<?x8xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @fc.weight : tensor<8x8xf32>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %z = fx.call "aten.linear.default"(%y, %w, #fx.none) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  func.return %z : tensor<?x8xf32>
}

// The weight lies as [K, N], as in transformers' Conv1D: its transpose is explicit, and folded with
// the weight later.
// CHECK-LABEL: func.func @addmm
// CHECK-NEXT:    %b = gq.weight @c_attn.bias : tensor<4xf32>
// CHECK-NEXT:    %w = gq.weight @c_attn.weight : tensor<8x4xf32>
// CHECK-NEXT:    %wt = gq.transpose %w : tensor<8x4xf32> -> tensor<4x8xf32>
// CHECK-NEXT:    %y = gq.matmul_t %x, %wt bias %b : (tensor<?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<?x4xf32>
func.func @addmm(%x : tensor<?x8xf32>) -> tensor<?x4xf32> {
  %b = gq.weight @c_attn.bias : tensor<4xf32>
  %w = gq.weight @c_attn.weight : tensor<8x4xf32>
  %y = fx.call "aten.addmm.default"(%b, %x, %w) : (tensor<4xf32>, tensor<?x8xf32>, tensor<8x4xf32>) -> tensor<?x4xf32>
  func.return %y : tensor<?x4xf32>
}

// So does a weight that a linear layer reads transposed.
// CHECK-LABEL: func.func @linear_of_transposed
// CHECK-NEXT:    %w = gq.weight @w : tensor<8x4xf32>
// CHECK-NEXT:    %wt = gq.transpose %w : tensor<8x4xf32> -> tensor<4x8xf32>
// CHECK-NEXT:    %y = gq.matmul_t %x, %wt : (tensor<?x8xf32>, tensor<4x8xf32>) -> tensor<?x4xf32>
func.func @linear_of_transposed(%x : tensor<?x8xf32>) -> tensor<?x4xf32> {
  %w = gq.weight @w : tensor<8x4xf32>
  %t = fx.call "aten.t.default"(%w) : (tensor<8x4xf32>) -> tensor<4x8xf32>
  %y = fx.call "aten.linear.default"(%x, %t) : (tensor<?x8xf32>, tensor<4x8xf32>) -> tensor<?x4xf32>
  func.return %y : tensor<?x4xf32>
}

// A weight on the left: the layer is between transposes.
// CHECK-LABEL: func.func @left
// CHECK-NEXT:    %w = gq.weight @mixer.dt_proj.weight : tensor<8x4xf32>
// CHECK-NEXT:    %[[X:.*]] = fx.call "aten.transpose.int"(%x, -2, -1) : (tensor<?x4x3xf32>) -> tensor<?x3x4xf32>
// CHECK-NEXT:    %[[Y:.*]] = gq.matmul_t %[[X]], %w : (tensor<?x3x4xf32>, tensor<8x4xf32>) -> tensor<?x3x8xf32>
// CHECK-NEXT:    %{{.*}} = fx.call "aten.transpose.int"(%[[Y]], -2, -1) : (tensor<?x3x8xf32>) -> tensor<?x8x3xf32>
func.func @left(%x : tensor<?x4x3xf32>) -> tensor<?x8x3xf32> {
  %w = gq.weight @mixer.dt_proj.weight : tensor<8x4xf32>
  %y = fx.call "aten.matmul.default"(%w, %x) : (tensor<8x4xf32>, tensor<?x4x3xf32>) -> tensor<?x8x3xf32> loc("mixer")
  func.return %y : tensor<?x8x3xf32>
}

// alpha and beta of 1 say nothing.
// CHECK-LABEL: func.func @addmm_with_ones
// CHECK:         %y = gq.matmul_t %x, %wt bias %b : (
func.func @addmm_with_ones(%x : tensor<?x8xf32>) -> tensor<?x4xf32> {
  %b = gq.weight @c_attn.bias : tensor<4xf32>
  %w = gq.weight @c_attn.weight : tensor<8x4xf32>
  %y = fx.call "aten.addmm.default"(%b, %x, %w) {alpha = 1, beta = 1.0 : f64} : (tensor<4xf32>, tensor<?x8xf32>, tensor<8x4xf32>) -> tensor<?x4xf32>
  func.return %y : tensor<?x4xf32>
}

// A linear that torch has decomposed: its transpose is of a weight [N, K], and goes.
// CHECK-LABEL: func.func @addmm_of_transposed
// CHECK-NEXT:    %b = gq.weight @fc.bias
// CHECK-NEXT:    %w = gq.weight @fc.weight : tensor<4x8xf32>
// CHECK-NEXT:    %y = gq.matmul_t %x, %w bias %b : (tensor<?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<?x4xf32>
// CHECK-NEXT:    func.return %y
func.func @addmm_of_transposed(%x : tensor<?x8xf32>) -> tensor<?x4xf32> {
  %b = gq.weight @fc.bias : tensor<4xf32>
  %w = gq.weight @fc.weight : tensor<4x8xf32>
  %t = fx.call "aten.t.default"(%w) : (tensor<4x8xf32>) -> tensor<8x4xf32>
  %y = fx.call "aten.addmm.default"(%b, %x, %t) : (tensor<4xf32>, tensor<?x8xf32>, tensor<8x4xf32>) -> tensor<?x4xf32>
  func.return %y : tensor<?x4xf32>
}

// mm and matmul, and the other ways to transpose.
// CHECK-LABEL: func.func @transposes
// CHECK-NEXT:    %w = gq.weight @fc.weight : tensor<8x8xf32>
// CHECK-NEXT:    %a = gq.matmul_t %x, %w : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
// CHECK-NEXT:    %b = gq.matmul_t %a, %w
// CHECK-NEXT:    %c = gq.matmul_t %b, %w
// CHECK-NEXT:    %d = gq.matmul_t %c, %w
// CHECK-NEXT:    %wt = gq.transpose %w : tensor<8x8xf32> -> tensor<8x8xf32>
// CHECK-NEXT:    %e = gq.matmul_t %d, %wt : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
// CHECK-NEXT:    func.return %e
func.func @transposes(%x : tensor<?x8xf32>) -> tensor<?x8xf32> {
  %w = gq.weight @fc.weight : tensor<8x8xf32>
  %t = fx.call "aten.transpose.int"(%w, 0, 1) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %a = fx.call "aten.mm.default"(%x, %t) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %u = fx.call "aten.transpose.int"(%w, -2, -1) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %b = fx.call "aten.matmul.default"(%a, %u) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %v = fx.call "aten.permute.default"(%w, [1, 0]) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %c = fx.call "aten.mm.default"(%b, %v) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %s = fx.call "aten.numpy_T.default"(%w) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %d = fx.call "aten.mm.default"(%c, %s) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %e = fx.call "aten.mm.default"(%d, %w) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  func.return %e : tensor<?x8xf32>
}

// A transpose that something else reads stays for it.
// CHECK-LABEL: func.func @transpose_with_another_reader
// CHECK:         %t = fx.call "aten.t.default"(%w)
// CHECK-NEXT:    %y = gq.matmul_t %x, %w
// CHECK-NEXT:    func.return %y, %t
func.func @transpose_with_another_reader(%x : tensor<?x8xf32>) -> (tensor<?x4xf32>, tensor<8x4xf32>) {
  %w = gq.weight @fc.weight : tensor<4x8xf32>
  %t = fx.call "aten.t.default"(%w) : (tensor<4x8xf32>) -> tensor<8x4xf32>
  %y = fx.call "aten.mm.default"(%x, %t) : (tensor<?x8xf32>, tensor<8x4xf32>) -> tensor<?x4xf32>
  func.return %y, %t : tensor<?x4xf32>, tensor<8x4xf32>
}

// What is no linear layer stays as it is:
// CHECK-LABEL: func.func @no_linear
// CHECK-NOT:     gq.matmul_t
// CHECK-NOT:     gq.transpose
// CHECK:         func.return
func.func @no_linear(%x : tensor<?x8xf32>, %k : tensor<8x8xf32>, %b : tensor<8xf32>, %c : tensor<?x8xf32>, %one : tensor<1xf32>, %z : tensor<2x?x8xf32>, %i : tensor<?x8xi64>) -> tensor<8x8xf32> {
  %w = gq.weight @fc.weight : tensor<8x8xf32>
  // scaled by alpha or beta,
  %0 = fx.call "aten.addmm.default"(%b, %x, %w) {alpha = 2} : (tensor<8xf32>, tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %1 = fx.call "aten.addmm.default"(%b, %x, %w) {beta = 0.5 : f64} : (tensor<8xf32>, tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  // with a bias of another shape than [N],
  %2 = fx.call "aten.addmm.default"(%c, %x, %w) : (tensor<?x8xf32>, tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %3 = fx.call "aten.addmm.default"(%one, %x, %w) : (tensor<1xf32>, tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  // by an activation, transposed or not,
  %4 = fx.call "aten.matmul.default"(%x, %k) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %5 = fx.call "aten.linear.default"(%x, %k) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  %t = fx.call "aten.t.default"(%k) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %6 = fx.call "aten.mm.default"(%x, %t) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  // by a weight that is no matrix,
  %w1 = gq.weight @vector : tensor<8xf32>
  %7 = fx.call "aten.matmul.default"(%x, %w1) : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?xf32>
  %8 = fx.call "aten.linear.default"(%x, %w1) : (tensor<?x8xf32>, tensor<8xf32>) -> tensor<?xf32>
  %w3 = gq.weight @batch : tensor<2x8x4xf32>
  %9 = fx.call "aten.matmul.default"(%z, %w3) : (tensor<2x?x8xf32>, tensor<2x8x4xf32>) -> tensor<2x?x4xf32>
  // by a weight that is transposed in no dimension,
  %s = fx.call "aten.transpose.int"(%w, 0, 0) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %10 = fx.call "aten.mm.default"(%x, %s) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32>
  // of integers,
  %wi = gq.weight @table {buffer} : tensor<8x8xi64>
  %11 = fx.call "aten.matmul.default"(%i, %wi) : (tensor<?x8xi64>, tensor<8x8xi64>) -> tensor<?x8xi64>
  // of constants: a weight that is itself a product, as in LoRA,
  %l = gq.weight @lora_b : tensor<8x8xf32>
  %a = gq.weight @lora_a : tensor<8x8xf32>
  %12 = fx.call "aten.mm.default"(%l, %a) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  %m = fx.call "aten.mul.Tensor"(%l, 2.0 : f64) : (tensor<8x8xf32>) -> tensor<8x8xf32>
  %13 = fx.call "aten.mm.default"(%m, %a) : (tensor<8x8xf32>, tensor<8x8xf32>) -> tensor<8x8xf32>
  func.return %13 : tensor<8x8xf32>
}
