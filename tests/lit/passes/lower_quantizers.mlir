// RUN: gqc-opt -p 'lower-quantizers{target=sm_100}' %s | filecheck %s

// One activation, decoded for a layer that is emulated and packed for one that is native: a kernel
// each. The scale of the tensor goes into both, and past them to the product.
// CHECK: %[[D:.*]] = gq.launch [@quantize_bf16_f4E2M1FN_g16_f8E4M3FN_amax_tensor_scale_64_decoded_bf16_any] rows [-1] on(%x, %s : tensor<?x64xbf16>, tensor<1xf32>) -> tensor<?x64xbf16>
// CHECK: %[[SCALE:.*]], %[[CODES:.*]] = gq.launch [@quantize_bf16_f4E2M1FN_g16_f8E4M3FN_amax_tensor_scale_64_packed_swizzle_32_4_4_any] rows [-1] on(%x, %s : tensor<?x64xbf16>, tensor<1xf32>) -> tensor<?x1x2x256xf8E4M3FN>, tensor<?x32xi8>
// CHECK: func.return %[[D]], %s, %[[CODES]], %[[SCALE]], %s
// CHECK: tile.kernel @quantize_bf16_f4E2M1FN_g16_f8E4M3FN_amax_tensor_scale_64_decoded_bf16_any
// CHECK: tile.kernel @quantize_bf16_f4E2M1FN_g16_f8E4M3FN_amax_tensor_scale_64_packed_swizzle_32_4_4_any
func.func @forward(%x : tensor<?x64xbf16>, %s : tensor<1xf32>) -> (tensor<?x64xbf16>, tensor<1xf32>, tensor<?x32xi8>, tensor<?x1x2x256xf8E4M3FN>, tensor<1xf32>) {
  %q = gq.qcast %x scale %s by "microscaling" "amax" : tensor<?x64xbf16> -> tensor<?x64x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
  %d, %a = gq.dcast %q : tensor<?x64x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> -> tensor<?x64xbf16>, tensor<1xf32>
  %c, %b, %t = gq.pack %q layout <bytes, scales = swizzle_32_4_4> : tensor<?x64x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> -> tensor<?x32xi8>, tensor<?x1x2x256xf8E4M3FN>, tensor<1xf32>
  func.return %d, %a, %c, %b, %t : tensor<?x64xbf16>, tensor<1xf32>, tensor<?x32xi8>, tensor<?x1x2x256xf8E4M3FN>, tensor<1xf32>
}
