// What the fx dialect refuses, and the words it uses.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: fx.call C1: the arguments mention operands [0], the call has [0, 1]
func.func @unmentioned(%x : tensor<2xf32>) {
  %y = "fx.call"(%x, %x) <{callee = "aten.abs.default", args = [#fx.operand<0>], kwargs = {}}> : (tensor<2xf32>, tensor<2xf32>) -> tensor<2xf32>
  func.return
}

// -----

// CHECK: fx.call C1: the arguments mention operands [0, 2], the call has [0]
func.func @out_of_range(%x : tensor<2xf32>) {
  %y = "fx.call"(%x) <{callee = "aten.add.Tensor", args = [#fx.operand<0>], kwargs = {other = [#fx.operand<2>]}}> : (tensor<2xf32>) -> tensor<2xf32>
  func.return
}

// -----

// CHECK: property 'callee' expected
func.func @no_callee(%x : tensor<2xf32>) {
  %y = "fx.call"(%x) <{args = [#fx.operand<0>], kwargs = {}}> : (tensor<2xf32>) -> tensor<2xf32>
  func.return
}

// -----

// CHECK: expected 1 operand types but had 2
func.func @too_few_types(%x : tensor<2xf32>) {
  %y = fx.call "aten.add.Tensor"(%x, %x) : (tensor<2xf32>) -> tensor<2xf32>
  func.return
}
