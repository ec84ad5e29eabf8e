// Every form of fx.call: operands and constants, nested lists, keywords, symbolic sizes, several
// results, none.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK-LABEL: func.func @values_and_numbers
// CHECK:         %y = fx.call "aten.linear.default"(%x, %w, %b) : (tensor<?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<?x4xf32>
// CHECK-NEXT:    %s = fx.call "aten.sym_size.int"(%y, 0) : (tensor<?x4xf32>) -> index
// CHECK-NEXT:    %t = fx.call "_operator.mul"(%s, -3) : (index) -> index
// CHECK-NEXT:    %u = fx.call "aten.add.Scalar"(%y, 5.000000e-01 : f64) : (tensor<?x4xf32>) -> tensor<?x4xf32>
// CHECK-NEXT:    %v = fx.call "aten.view.default"(%u, [%s, 2, 2]) : (tensor<?x4xf32>, index) -> tensor<?x2x2xf32>
// GENERIC:       %y = "fx.call"(%x, %w, %b) <{callee = "aten.linear.default", args = [#fx.operand<0>, #fx.operand<1>, #fx.operand<2>], kwargs = {}}> : (tensor<?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<?x4xf32>
// GENERIC-NEXT:  %s = "fx.call"(%y) <{callee = "aten.sym_size.int", args = [#fx.operand<0>, 0 : i64], kwargs = {}}>
// GENERIC-NEXT:  "fx.call"(%s) <{callee = "_operator.mul", args = [#fx.operand<0>, -3 : i64], kwargs = {}}>
// GENERIC-NEXT:  "fx.call"(%y) <{callee = "aten.add.Scalar", args = [#fx.operand<0>, 5.000000e-01 : f64], kwargs = {}}>
// GENERIC-NEXT:  "fx.call"(%u, %s) <{callee = "aten.view.default", args = [#fx.operand<0>, [#fx.operand<1>, 2 : i64, 2 : i64]], kwargs = {}}>
func.func @values_and_numbers(%x : tensor<?x8xf32>, %w : tensor<4x8xf32>, %b : tensor<4xf32>) -> tensor<?x2x2xf32> {
  %y = fx.call "aten.linear.default"(%x, %w, %b) : (tensor<?x8xf32>, tensor<4x8xf32>, tensor<4xf32>) -> tensor<?x4xf32>
  %s = fx.call "aten.sym_size.int"(%y, 0) : (tensor<?x4xf32>) -> index
  %t = fx.call "_operator.mul"(%s, -3) : (index) -> index
  %u = fx.call "aten.add.Scalar"(%y, 0.5 : f64) : (tensor<?x4xf32>) -> tensor<?x4xf32>
  %v = fx.call "aten.view.default"(%u, [%s, 2, 2]) : (tensor<?x4xf32>, index) -> tensor<?x2x2xf32>
  func.return %v : tensor<?x2x2xf32>
}

// CHECK-LABEL: func.func @lists_and_keywords
// CHECK:         %a, %b = fx.call "aten.split.Tensor"(%x, 4, -1) : (tensor<2x8xf32>) -> (tensor<2x4xf32>, tensor<2x4xf32>)
// CHECK-NEXT:    %c = fx.call "aten.cat.default"([%a, %b, %a], 1) : (tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>) -> tensor<2x12xf32>
// CHECK-NEXT:    %d = fx.call "aten.index.Tensor"(%c, [#fx.none, %i]) : (tensor<2x12xf32>, tensor<3xi64>) -> tensor<2x3xf32>
// CHECK-NEXT:    %e = fx.call "aten.sum.dim_IntList"(%d, [], true) {dtype = #fx.dtype<"float64">} : (tensor<2x3xf32>) -> tensor<1x1xf64>
// CHECK-NEXT:    %f = fx.call "aten.gelu.default"(%d) {approximate = "tanh"} : (tensor<2x3xf32>) -> tensor<2x3xf32>
// CHECK-NEXT:    %g = fx.call "aten.add.Tensor"(%f, %f) {alpha = 2} : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xf32>
// CHECK-NEXT:    %h = fx.call "aten.empty.memory_format"([2, 3]) {dtype = #fx.dtype<"bfloat16">, layout = #fx.layout<"strided">, device = #fx.device<"cuda:0">, pin_memory = false, memory_format = #fx.memory_format<"contiguous_format">} : () -> tensor<2x3xbf16>
// CHECK-NEXT:    fx.call "aten._assert_scalar.default"(true, "never") : () -> ()
// CHECK-NEXT:    %j = fx.call "aten.clone.default"(%d) attributes {note = "kept"} : (tensor<2x3xf32>) -> tensor<2x3xf32>
// GENERIC:       %a, %b = "fx.call"(%x) <{callee = "aten.split.Tensor", args = [#fx.operand<0>, 4 : i64, -1 : i64], kwargs = {}}> : (tensor<2x8xf32>) -> (tensor<2x4xf32>, tensor<2x4xf32>)
// GENERIC-NEXT:  %c = "fx.call"(%a, %b, %a) <{callee = "aten.cat.default", args = [{{\[}}#fx.operand<0>, #fx.operand<1>, #fx.operand<2>], 1 : i64], kwargs = {}}>
// GENERIC-NEXT:  %d = "fx.call"(%c, %i) <{callee = "aten.index.Tensor", args = [#fx.operand<0>, [#fx.none, #fx.operand<1>]], kwargs = {}}>
// GENERIC-NEXT:  %e = "fx.call"(%d) <{callee = "aten.sum.dim_IntList", args = [#fx.operand<0>, [], true], kwargs = {dtype = #fx.dtype<"float64">}}>
// GENERIC-NEXT:  %f = "fx.call"(%d) <{callee = "aten.gelu.default", args = [#fx.operand<0>], kwargs = {approximate = "tanh"}}>
func.func @lists_and_keywords(%x : tensor<2x8xf32>, %i : tensor<3xi64>) -> tensor<2x3xf32> {
  %a, %b = fx.call "aten.split.Tensor"(%x, 4, -1) : (tensor<2x8xf32>) -> (tensor<2x4xf32>, tensor<2x4xf32>)
  %c = fx.call "aten.cat.default"([%a, %b, %a], 1) : (tensor<2x4xf32>, tensor<2x4xf32>, tensor<2x4xf32>) -> tensor<2x12xf32>
  %d = fx.call "aten.index.Tensor"(%c, [#fx.none, %i]) : (tensor<2x12xf32>, tensor<3xi64>) -> tensor<2x3xf32>
  %e = fx.call "aten.sum.dim_IntList"(%d, [], true) {dtype = #fx.dtype<"float64">} : (tensor<2x3xf32>) -> tensor<1x1xf64>
  %f = fx.call "aten.gelu.default"(%d) {approximate = "tanh"} : (tensor<2x3xf32>) -> tensor<2x3xf32>
  %g = fx.call "aten.add.Tensor"(%f, %f) {alpha = 2} : (tensor<2x3xf32>, tensor<2x3xf32>) -> tensor<2x3xf32>
  %h = fx.call "aten.empty.memory_format"([2, 3]) {dtype = #fx.dtype<"bfloat16">, layout = #fx.layout<"strided">, device = #fx.device<"cuda:0">, pin_memory = false, memory_format = #fx.memory_format<"contiguous_format">} : () -> tensor<2x3xbf16>
  fx.call "aten._assert_scalar.default"(true, "never") : () -> ()
  %j = fx.call "aten.clone.default"(%d) attributes {note = "kept"} : (tensor<2x3xf32>) -> tensor<2x3xf32>
  func.return %j : tensor<2x3xf32>
}
