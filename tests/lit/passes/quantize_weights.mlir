// quantize-weights: a symbolic gq.qcast of each weight, by the first entry whose pattern matches the
// layer; every layer that is left as it is says why.
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*.out_proj=int8_row_sym","*.o=keep","model.layers.*=int4_g32"}' | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=ui4 g16 scale=bf16 zero=ui4 zero_mode=quantized quantizer=rtn scale_rule=minmax" lm_head=true}' | filecheck %s --check-prefix ALL

// CHECK:      func.func @forward(%ids: tensor<?xi64>) -> tensor<?x96xf32> {
// CHECK-NEXT:   %e = gq.weight @model.embed.weight : tensor<96x64xf32>
// CHECK-NEXT:   %x = fx.call "aten.embedding.default"(%e, %ids) : (tensor<96x64xf32>, tensor<?xi64>) -> tensor<?x64xf32>

// A preset: asymmetric, 32 elements of K share a scale and a zero point. The bias stays.
// CHECK-NEXT:   %wq = gq.weight @model.layers.0.q.weight : tensor<64x64xf32>
// CHECK-NEXT:   %wq_1 = gq.qcast %wq by "rtn" "minmax" : tensor<64x64xf32> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
// CHECK-NEXT:   %bq = gq.weight @model.layers.0.q.bias : tensor<64xf32>
// CHECK-NEXT:   %q = gq.matmul_t %x, %wq_1 bias %bq : (tensor<?x64xf32>, tensor<64x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>, tensor<64xf32>) -> tensor<?x64xf32>

// A weight that two layers share is quantized once.
// CHECK-NEXT:   %k = gq.matmul_t %q, %wq_1 : (

// Of a weight that lies as [K, N], the transpose is quantized: blocks run along K.
// CHECK-NEXT:   %wc = gq.weight @model.layers.0.c_attn.weight : tensor<64x32xf32>
// CHECK-NEXT:   %wt = gq.transpose %wc : tensor<64x32xf32> -> tensor<32x64xf32>
// CHECK-NEXT:   %wq_2 = gq.qcast %wt by "rtn" "minmax" : tensor<32x64xf32> -> tensor<32x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
// CHECK-NEXT:   %c = gq.matmul_t %k, %wq_2

// The first entry that matches: symmetric, one scale a row.
// CHECK-NEXT:   %wp = gq.weight @model.layers.0.out_proj.weight : tensor<64x32xf32>
// CHECK-NEXT:   %wq_3 = gq.qcast %wp by "rtn" "no_clip" : tensor<64x32xf32> -> tensor<64x32x!gq.block_scaled<1x? : f16 : si8>>
// CHECK-NEXT:   %p = gq.matmul_t %c, %wq_3

// Kept by an entry, by its name, by none.
// CHECK-NEXT:   %wo = gq.weight @model.layers.0.o.weight
// CHECK-NEXT:   %o = gq.matmul_t %p, %wo decision <kept, "ignored by pattern *.o"> :
// CHECK-NEXT:   %wn = gq.weight @model.norm_proj.weight
// CHECK-NEXT:   %n = gq.matmul_t %o, %wn decision <kept, "no scheme names this layer"> :
// CHECK-NEXT:   %y = gq.matmul_t %n, %e decision <kept, "no scheme names this layer"> :
// CHECK-NEXT:   func.return %y

// With lm_head, everything goes, the tied head too: the embedding still reads the weight itself.
// ALL:          %e = gq.weight @model.embed.weight
// ALL-NEXT:     %wq = gq.qcast %e by "rtn" "minmax" : tensor<96x64xf32> -> tensor<96x64x!gq.block_scaled<1x16 : bf16 : ui4, zero = ui4, zero_mode = quantized>>
// ALL-NEXT:     %x = fx.call "aten.embedding.default"(%e, %ids)
// ALL-NOT:      decision
// ALL:          %y = gq.matmul_t %n, %wq :
func.func @forward(%ids : tensor<?xi64>) -> tensor<?x96xf32> {
  %e = gq.weight @model.embed.weight : tensor<96x64xf32>
  %x = fx.call "aten.embedding.default"(%e, %ids) : (tensor<96x64xf32>, tensor<?xi64>) -> tensor<?x64xf32>
  %wq = gq.weight @model.layers.0.q.weight : tensor<64x64xf32>
  %bq = gq.weight @model.layers.0.q.bias : tensor<64xf32>
  %q = gq.matmul_t %x, %wq bias %bq : (tensor<?x64xf32>, tensor<64x64xf32>, tensor<64xf32>) -> tensor<?x64xf32>
  %k = gq.matmul_t %q, %wq : (tensor<?x64xf32>, tensor<64x64xf32>) -> tensor<?x64xf32>
  %wc = gq.weight @model.layers.0.c_attn.weight : tensor<64x32xf32>
  %wt = gq.transpose %wc : tensor<64x32xf32> -> tensor<32x64xf32>
  %c = gq.matmul_t %k, %wt : (tensor<?x64xf32>, tensor<32x64xf32>) -> tensor<?x32xf32>
  %wp = gq.weight @model.layers.0.out_proj.weight : tensor<64x32xf32>
  %p = gq.matmul_t %c, %wp : (tensor<?x32xf32>, tensor<64x32xf32>) -> tensor<?x64xf32>
  %wo = gq.weight @model.layers.0.o.weight : tensor<64x64xf32>
  %o = gq.matmul_t %p, %wo : (tensor<?x64xf32>, tensor<64x64xf32>) -> tensor<?x64xf32>
  %wn = gq.weight @model.norm_proj.weight : tensor<64x64xf32>
  %n = gq.matmul_t %o, %wn : (tensor<?x64xf32>, tensor<64x64xf32>) -> tensor<?x64xf32>
  %y = gq.matmul_t %n, %e : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32>
  func.return %y : tensor<?x96xf32>
}
