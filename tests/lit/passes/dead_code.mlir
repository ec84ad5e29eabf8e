// xDSL's dead-code elimination knows which calls of torch have no effect: what writes an argument,
// draws random numbers or asserts stays, and what it reads; so does a callee that torch lacks.
// RUN: gqc-opt %s -p dce | filecheck %s

// CHECK:      func.func @dead(%x: tensor<4x8xf32>, %n: index) -> tensor<4x8xf32> {
// CHECK-NEXT:   func.return %x
func.func @dead(%x: tensor<4x8xf32>, %n: index) -> tensor<4x8xf32> {
  %w = gq.weight @fc.weight : tensor<8x8xf32>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<4x8xf32>, tensor<8x8xf32>) -> tensor<4x8xf32>
  %z = fx.call "aten._to_copy.default"(%y) {dtype = #fx.dtype<"bfloat16">} : (tensor<4x8xf32>) -> tensor<4x8xbf16>
  %m = fx.call "_operator.add"(%n, 1) : (index) -> index
  func.return %x : tensor<4x8xf32>
}

// CHECK:      func.func @effects
// CHECK-NEXT:   %y = fx.call "aten.relu.default"(%x)
// CHECK-NEXT:   fx.call "aten.relu_.default"(%y)
// CHECK-NEXT:   fx.call "aten.bernoulli.default"(%x)
// CHECK-NEXT:   %s = fx.call "aten.gt.Scalar"(%x, 0)
// CHECK-NEXT:   fx.call "aten._assert_async.msg"(%s, "positive")
// CHECK-NEXT:   fx.call "aten._assert_scalar.default"(%n, "some")
// CHECK-NEXT:   fx.call "_operator.iadd"(%x, 1)
// CHECK-NEXT:   fx.call "mine.unknown.default"(%x)
// CHECK-NEXT:   func.return %x
func.func @effects(%x: tensor<4x8xf32>, %n: index) -> tensor<4x8xf32> {
  %y = fx.call "aten.relu.default"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %y_1 = fx.call "aten.relu_.default"(%y) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %r = fx.call "aten.bernoulli.default"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %s = fx.call "aten.gt.Scalar"(%x, 0) : (tensor<4x8xf32>) -> tensor<4x8xi1>
  fx.call "aten._assert_async.msg"(%s, "positive") : (tensor<4x8xi1>) -> ()
  fx.call "aten._assert_scalar.default"(%n, "some") : (index) -> ()
  %i = fx.call "_operator.iadd"(%x, 1) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  %u = fx.call "mine.unknown.default"(%x) : (tensor<4x8xf32>) -> tensor<4x8xf32>
  func.return %x : tensor<4x8xf32>
}
