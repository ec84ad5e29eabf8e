// recognize-linears names a layer for its module, or where the module multiplies by several weights,
// or reads that of a module inside, for the weight (torch's MultiheadAttention); the line of source
// stays.
// RUN: gqc-opt %s -p recognize-linears --print-debuginfo | filecheck %s

// CHECK:      %y = gq.matmul_t %x, %q : {{.*}} loc("attn.in_proj_weight"("model.py":7:0))
// CHECK-NEXT: %z = gq.matmul_t %y, %o : {{.*}} loc("attn.out_proj")
// CHECK-NEXT: %u = gq.matmul_t %z, %f : {{.*}} loc("fc"("model.py":8:0))
// CHECK-NEXT: %v = gq.matmul_t %u, %f : {{.*}} loc("fc")
func.func @forward(%x : tensor<?x8xf32>) -> tensor<?x8xf32> {
  %q = gq.weight @attn.in_proj_weight : tensor<8x8xf32>
  %o = gq.weight @attn.out_proj.weight : tensor<8x8xf32>
  %f = gq.weight @fc.weight : tensor<8x8xf32>
  %y = fx.call "aten.linear.default"(%x, %q) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32> loc("attn"("model.py":7:0))
  %z = fx.call "aten.linear.default"(%y, %o) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32> loc("attn")
  %u = fx.call "aten.linear.default"(%z, %f) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32> loc("fc"("model.py":8:0))
  %v = fx.call "aten.linear.default"(%u, %f) : (tensor<?x8xf32>, tensor<8x8xf32>) -> tensor<?x8xf32> loc("fc")
  func.return %v : tensor<?x8xf32>
}
