// merge-linears: layers that read one activation and whose weights have one type become one.
// RUN: gqc-opt -p merge-linears %s | filecheck %s
// RUN: gqc-opt -p "merge-linears,legalize{target=cpu_avx512},assign-layouts{target=cpu_avx512},split-m-buckets{target=cpu_avx512},lower-to-tile{target=cpu_avx512},fold-weights" %s | filecheck %s --check-prefix=FOLD

// Weights that stand behind the first layer come before it. Views of the results may copy.
// CHECK-LABEL: func.func @attention
// CHECK: %[[Q:.*]] = gq.qcast %{{.*}} by "rtn"
// CHECK: %[[K:.*]] = gq.qcast %{{.*}} by "rtn"
// CHECK: %[[W:.*]] = gq.concat %[[Q]], %[[K]] : tensor<64x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<16x32x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<80x32x!gq.block_scaled<1x32 : f16 : si4>>
// CHECK: %[[B:.*]] = gq.concat %bq, %bk : tensor<64xf32>, tensor<16xf32> -> tensor<80xf32>
// CHECK-NEXT: %[[Y:.*]] = gq.matmul_t %x, %[[W]] bias %[[B]] : (tensor<?x?x32xf32>, tensor<80x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<80xf32>) -> tensor<?x?x80xf32>
// CHECK-NEXT: %{{.*}}, %{{.*}} = fx.call "aten.split_with_sizes.default"(%[[Y]], [64, 16], -1) : (tensor<?x?x80xf32>) -> (tensor<?x?x64xf32>, tensor<?x?x16xf32>)
// CHECK-NEXT: fx.call "aten.unsqueeze.default"
// CHECK-NEXT: fx.call "aten.reshape.default"
// CHECK-NEXT: func.return
// FOLD-LABEL: func.func @attention
// FOLD-NEXT: gq.weight @q_k.weight_packed : tensor<2x4x64xi32>
// FOLD-NEXT: gq.weight @q_k.weight_scale : tensor<2x1x64xf16>
// FOLD-NEXT: gq.weight @q_k.bias : tensor<80xf32>
// FOLD-NEXT: gq.launch {{.*}} layer = [@q, @k], weight = [@q.weight, @k.weight]
func.func @attention(%x : tensor<?x?x32xf32>) -> (tensor<?x?x16x4xf32>, tensor<?x?x16xf32>) {
  %wq = gq.weight @q.weight : tensor<64x32xf32>
  %bq = gq.weight @q.bias : tensor<64xf32>
  %cq = gq.qcast %wq by "rtn" "absmax" : tensor<64x32xf32> -> tensor<64x32x!gq.block_scaled<1x32 : f16 : si4>>
  %q = gq.matmul_t %x, %cq bias %bq : (tensor<?x?x32xf32>, tensor<64x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<64xf32>) -> tensor<?x?x64xf32> loc("q")
  %wk = gq.weight @k.weight : tensor<16x32xf32>
  %bk = gq.weight @k.bias : tensor<16xf32>
  %ck = gq.qcast %wk by "rtn" "absmax" : tensor<16x32xf32> -> tensor<16x32x!gq.block_scaled<1x32 : f16 : si4>>
  %u = fx.call "aten.unsqueeze.default"(%q, 0) : (tensor<?x?x64xf32>) -> tensor<1x?x?x64xf32>
  %v = fx.call "aten.view.default"(%u, [2, 5, 16, 4]) : (tensor<1x?x?x64xf32>) -> tensor<?x?x16x4xf32>
  %k = gq.matmul_t %x, %ck bias %bk : (tensor<?x?x32xf32>, tensor<16x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<16xf32>) -> tensor<?x?x16xf32> loc("k")
  func.return %v, %k : tensor<?x?x16x4xf32>, tensor<?x?x16xf32>
}

// Weights that are stored quantized, but not with another type, nor one that stays dense.
// CHECK-LABEL: func.func @stored
// CHECK: gq.concat %a, %b
// CHECK-NOT: gq.concat
// CHECK: func.return
func.func @stored(%x : tensor<?x32xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) {
  %a = gq.weight @a.weight : tensor<8x32x!gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = quantized>>
  %0 = gq.matmul_t %x, %a : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = quantized>>) -> tensor<?x8xf32>
  %d = gq.weight @d.weight : tensor<8x32xf32>
  %1 = gq.matmul_t %x, %d decision <kept, "as it is"> : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>
  %c = gq.weight @c.weight : tensor<8x32x!gq.block_scaled<1x16 : f16 : ui4, zero = ui4, zero_mode = quantized>>
  %2 = gq.matmul_t %x, %c : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x16 : f16 : ui4, zero = ui4, zero_mode = quantized>>) -> tensor<?x8xf32>
  %b = gq.weight @b.weight : tensor<8x32x!gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = quantized>>
  %3 = gq.matmul_t %x, %b : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = quantized>>) -> tensor<?x8xf32>
  func.return %0, %1, %2, %3 : tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>
}

// One with a bias and one without, another input, a weight that another layer reads too: apart.
// CHECK-LABEL: func.func @apart
// CHECK-NOT: gq.concat
// CHECK: func.return
func.func @apart(%x : tensor<?x32xf32>, %z : tensor<?x32xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>) {
  %a = gq.weight @a.weight : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %b = gq.weight @b.weight : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %c = gq.weight @c.weight : tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>
  %bias = gq.weight @b.bias : tensor<8xf32>
  %0 = gq.matmul_t %x, %a : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  %1 = gq.matmul_t %x, %b bias %bias : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>, tensor<8xf32>) -> tensor<?x8xf32>
  %2 = gq.matmul_t %x, %c : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  %3 = gq.matmul_t %z, %c : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x8xf32>
  func.return %0, %1, %2, %3 : tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>, tensor<?x8xf32>
}

// Tensor scales are not known before weights are quantized.
// CHECK-LABEL: func.func @tensor_scales
// CHECK-NOT: gq.concat
// CHECK: gq.matmul_t {{.*}} {apart = "a launch each, for every weight has a tensor scale of its own: a, b"}
// CHECK: gq.matmul_t {{.*}} {apart = "a launch each, for every weight has a tensor scale of its own: a, b"}
func.func @tensor_scales(%x : tensor<?x32xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %a = gq.weight @a.weight : tensor<8x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
  %b = gq.weight @b.weight : tensor<8x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
  %0 = gq.matmul_t %x, %a : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>) -> tensor<?x8xf32>
  %1 = gq.matmul_t %x, %b : (tensor<?x32xf32>, tensor<8x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>) -> tensor<?x8xf32>
  func.return %0, %1 : tensor<?x8xf32>, tensor<?x8xf32>
}
