// quantize-weights: the output head is kept unless asked for, called lm_head or tied to the embedding.
// A location names the layer where there is one; else the weight does.
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int4_g32"}' | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int4_g32" lm_head=true}' | filecheck %s --check-prefix ALL

// CHECK-LABEL: func.func @named
// CHECK:         %y = gq.matmul_t %x, %w decision <kept, "the output head is kept by default"> :
// CHECK-NEXT:    %z = gq.matmul_t %x, %v decision <kept, "the output head is kept by default"> :
// ALL-LABEL:   func.func @named
// ALL-NOT:       decision
// ALL:           func.return
func.func @named(%x : tensor<?x64xf32>) -> tensor<?x96xf32> {
  %w = gq.weight @lm_head.weight : tensor<96x64xf32>
  %v = gq.weight @some.name : tensor<96x64xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32>
  %z = gq.matmul_t %x, %v : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32> loc("model.lm_head")
  func.return %z : tensor<?x96xf32>
}

// CHECK-LABEL: func.func @tied
// CHECK:         %y = gq.matmul_t %x, %w decision <kept, "its weight is shared with aten.embedding.default"> :
// ALL-LABEL:   func.func @tied
// ALL-NOT:       decision
// ALL:           func.return
func.func @tied(%ids : tensor<?xi64>) -> tensor<?x96xf32> {
  %w = gq.weight @embed.weight : tensor<96x64xf32>
  %x = fx.call "aten.embedding.default"(%w, %ids) : (tensor<96x64xf32>, tensor<?xi64>) -> tensor<?x64xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32>
  func.return %y : tensor<?x96xf32>
}
