// legalize refuses what the target cannot do: every layer at once, each with the remedy.
// RUN: not gqc-opt %s -p legalize{target=sm_90} 2>&1 | filecheck %s

// CHECK:      gqc-opt: target sm_90 cannot do 3 layers:
// CHECK-NEXT:   a: its activations are f32, the target multiplies f16 and bf16: convert the model, for example model.bfloat16()
// CHECK-NEXT:   b: no kernel reads scales of f16 with f6E2M3FN: choose one of f8E8M0FNU
// CHECK-NEXT:   c: no kernel scales blocks of 16x16: choose a group of (16, 32, 64, 128, 256) or row
func.func @forward(%x : tensor<?x64xf32>, %h : tensor<?x64xf16>) -> tensor<?x64xf16> {
  %a = gq.weight @a.weight : tensor<64x64xf32>
  %qa = gq.qcast %a by "rtn" "no_clip" : tensor<64x64xf32> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>
  %ya = gq.matmul_t %x, %qa : (tensor<?x64xf32>, tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x64xf32>
  %b = gq.weight @b.weight : tensor<64x64xf16>
  %qb = gq.qcast %b by "rtn" "no_clip" : tensor<64x64xf16> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : f6E2M3FN>>
  %yb = gq.matmul_t %h, %qb : (tensor<?x64xf16>, tensor<64x64x!gq.block_scaled<1x32 : f16 : f6E2M3FN>>) -> tensor<?x64xf16>
  %c = gq.weight @c.weight : tensor<64x64xf16>
  %qc = gq.qcast %c by "rtn" "no_clip" : tensor<64x64xf16> -> tensor<64x64x!gq.block_scaled<16x16 : f16 : si4>>
  %yc = gq.matmul_t %yb, %qc : (tensor<?x64xf16>, tensor<64x64x!gq.block_scaled<16x16 : f16 : si4>>) -> tensor<?x64xf16>
  %d = gq.weight @d.weight : tensor<64x64xf16>
  %qd = gq.qcast %d by "rtn" "no_clip" : tensor<64x64xf16> -> tensor<64x64x!gq.block_scaled<1x64 : f16 : si4>>
  %yd = gq.matmul_t %yc, %qd : (tensor<?x64xf16>, tensor<64x64x!gq.block_scaled<1x64 : f16 : si4>>) -> tensor<?x64xf16>
  func.return %yd : tensor<?x64xf16>
}
