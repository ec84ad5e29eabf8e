// quantize-weights keeps what would compute something else once packed, and what is no parameter; a
// layer that a pattern names in full is quantized even where it would be kept by default.
// RUN: gqc-opt %s -p 'quantize-weights{schemes="lm_head=int8_g32","tied=int8_g32","*=int4_g32"}' | filecheck %s

// The model writes the buffer after it is read, under whatever name the layer has.
// CHECK-LABEL: func.func @written
// CHECK:         %y = gq.matmul_t %x, %w decision <kept, "the model writes it"> :
func.func @written(%x : tensor<?x64xf32>, %new : tensor<96x64xf32>) -> (tensor<?x96xf32>, tensor<96x64xf32> {fx.mutates = "fast.W"}) {
  %w = gq.weight @fast.W {buffer} : tensor<96x64xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32>
  func.return %y, %new : tensor<?x96xf32>, tensor<96x64xf32>
}

// CHECK-LABEL: func.func @buffer
// CHECK:         %w = gq.weight @dft {buffer} : tensor<64x64xf32>
// CHECK-NEXT:    %t = gq.transpose %w
// CHECK-NEXT:    %y = gq.matmul_t %x, %t decision <kept, "a buffer, not a parameter"> :
func.func @buffer(%x : tensor<?x64xf32>) -> tensor<?x64xf32> {
  %w = gq.weight @dft {buffer} : tensor<64x64xf32>
  %t = gq.transpose %w : tensor<64x64xf32> -> tensor<64x64xf32>
  %y = gq.matmul_t %x, %t : (tensor<?x64xf32>, tensor<64x64xf32>) -> tensor<?x64xf32>
  func.return %y : tensor<?x64xf32>
}

// CHECK-LABEL: func.func @named
// CHECK:         %y = gq.matmul_t %x, %w decision <kept, "the output head is kept by default"> :
// CHECK-NEXT:    %z = gq.matmul_t %x, %wq : (tensor<?x64xf32>, tensor<96x64x!gq.block_scaled<1x32 : f16 : ui8, zero = f16, zero_mode = rescale>>) -> tensor<?x96xf32>
func.func @named(%x : tensor<?x64xf32>) -> (tensor<?x96xf32>, tensor<?x96xf32>) {
  %w = gq.weight @w : tensor<96x64xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32> loc("model.lm_head")
  %z = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32> loc("lm_head")
  func.return %y, %z : tensor<?x96xf32>, tensor<?x96xf32>
}

// CHECK-LABEL: func.func @tied
// CHECK:         %y = gq.matmul_t %x, %e decision <kept, "its weight is shared with aten.embedding.default"> :
// CHECK-NEXT:    %z = gq.matmul_t %x, %wq : (tensor<?x64xf32>, tensor<96x64x!gq.block_scaled<1x32 : f16 : ui8, zero = f16, zero_mode = rescale>>) -> tensor<?x96xf32>
func.func @tied(%ids : tensor<?xi64>) -> (tensor<?x96xf32>, tensor<?x96xf32>) {
  %e = gq.weight @embed.weight : tensor<96x64xf32>
  %x = fx.call "aten.embedding.default"(%e, %ids) : (tensor<96x64xf32>, tensor<?xi64>) -> tensor<?x64xf32>
  %y = gq.matmul_t %x, %e : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32> loc("head")
  %z = gq.matmul_t %x, %e : (tensor<?x64xf32>, tensor<96x64xf32>) -> tensor<?x96xf32> loc("tied")
  func.return %y, %z : tensor<?x96xf32>, tensor<?x96xf32>
}
