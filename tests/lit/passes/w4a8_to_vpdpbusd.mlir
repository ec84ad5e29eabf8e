// One layer of w4a8_g32 on a CPU with VNNI: x is quantized by a kernel that leaves sums, scales and
// codes; the weight lies in quads; a step of the other kernel is one group.
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w4a8_g32"},quantize-activations{schemes="*=w4a8_g32"},legalize{target=cpu_avx512vnni},assign-layouts{target=cpu_avx512vnni},split-m-buckets{target=cpu_avx512vnni},lower-quantizers{target=cpu_avx512vnni},lower-to-tile{target=cpu_avx512vnni}' | filecheck %s

// CHECK:      %[[SUM:.*]], %[[SCALE:.*]], %[[CODES:.*]] = gq.launch [@quantize_bf16_si8_g32_f32_amax_64_packed_summed_any] rows [-1] on(%x : tensor<?x64xbf16>) -> tensor<?x2xi32>, tensor<?x2xf32>, tensor<?x64xi8>
// CHECK:      gq.pack %{{.*}} layout <lane_quads, lanes = 32>
// CHECK-SAME: -> tensor<2x8x32xi32>, tensor<2x2x32xf16>
// CHECK:      gq.launch [@matmul_bf16_si8_si4_g32_f16_48x64_m1, @matmul_bf16_si8_si4_g32_f16_48x64_m2, @matmul_bf16_si8_si4_g32_f16_48x64_any, @matmul_bf16_si8_si4_g32_f16_48x64_m16, @matmul_bf16_si8_si4_g32_f16_48x64_any, @matmul_bf16_si8_si4_g32_f16_48x64_m16, @matmul_bf16_si8_si4_g32_f16_48x64_any] rows [1, 2, 4, 8, 12, 16, -1]
// CHECK-SAME: on(%[[CODES]], %[[SCALE]], %[[SUM]] :
// CHECK-SAME: decision = #gq.decision<native, "vpdpbusd takes si8 by si4 under f32 and f16">

// CHECK:      tile.kernel @quantize_bf16_si8_g32_f32_amax_64_packed_summed_any(%x: memref<?x64xbf16>, %sum: memref<?x2xi32>, %scale: memref<?x2xf32>, %codes: memref<?x64xi8>)
// CHECK:        %codes_1, %scale_1 = tile.qcast %x_tile_1 by "amax" : vector<1x32xf32> -> vector<1x32xsi8>, vector<1x1xf32>
// CHECK-NEXT:   %sum_1 = tile.sum %codes_1 axis = 1 : vector<1x32xsi8> to vector<1x1xi32>

// CHECK:      tile.kernel @matmul_bf16_si8_si4_g32_f16_48x64_any(%x: memref<?x64xi8>, %x_scale: memref<?x2xf32>, %x_sum: memref<?x2xi32>, %w: memref<2x8x32xi32>, %scale: memref<2x2x32xf16>, %y: memref<?x48xbf16>) tile<4, 32>
// CHECK:        %codes = tile.unpack %w_words axis = 0 order = "quads" : (vector<4x32xi32>) -> vector<32x32xui4>
// CHECK:        %x_codes = tile.bitcast %x_tile : vector<4x32xi8> to vector<4x32xsi8>
// CHECK:        tile.full -8.000000e+00 : vector<4x1xi32>
// CHECK-NEXT:   %start = arith.muli %x_sum_tile, %{{.*}} : vector<4x1xi32>
// CHECK:        %part = tile.dot %{{.*}}, %x_codes, %codes : vector<4x32xsi8>, vector<32x32xui4> -> vector<4x32xi32>
func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x48xbf16> {
  %w = gq.weight @fc.weight : tensor<48x64xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x64xbf16>, tensor<48x64xbf16>) -> tensor<?x48xbf16>
  func.return %y : tensor<?x48xbf16>
}
