// lower-to-tile: layers of one shape, of which one was merged and has tiles of more columns, have
// kernels of their own where these differ, and share the others. Buckets of one tile have one kernel,
// named as the last of them.
// RUN: gqc-opt %s -p assign-layouts{target=cpu_avx512},split-m-buckets{target=cpu_avx512},lower-to-tile{target=cpu_avx512} | filecheck %s

// CHECK-LABEL: func.func @one_weight
// CHECK:         gq.launch [@[[NAME:[a-z0-9_]+]]_m1, @[[NAME]]_m2, @[[NAME]]_m12, @[[NAME]]_m16, @[[NAME]]_m12, @[[NAME]]_m16, @[[NAME]]_any] rows [1, 2, 4, 8, 12, 16, -1]
// CHECK-LABEL: func.func @two_weights
// CHECK:         gq.launch [@[[NAME]]_m1, @[[NAME]]_m2, @[[NAME]]_m12, @[[NAME]]_n32_m16, @[[NAME]]_m12, @[[NAME]]_n32_m16, @[[NAME]]_any] rows [1, 2, 4, 8, 12, 16, -1]
// CHECK:       tile.kernel @[[NAME]]_m1(
// CHECK:       tile.kernel @[[NAME]]_m2(
// CHECK:       tile.kernel @[[NAME]]_m12({{.*}} tile<4, 64>
// CHECK:       tile.kernel @[[NAME]]_m16({{.*}} tile<8, 16>
// CHECK:       tile.kernel @[[NAME]]_any(
// CHECK:       tile.kernel @[[NAME]]_n32_m16({{.*}} tile<8, 32>
// CHECK-NOT:   tile.kernel
func.func @one_weight(%x : tensor<?x128xf32>) -> tensor<?x64xf32> {
  %q = gq.weight @down : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>
  %w = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128xf32>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xf32>, tensor<64x128xf32>) -> tensor<?x64xf32>
  func.return %y : tensor<?x64xf32>
}

func.func @two_weights(%x : tensor<?x128xf32>) -> tensor<?x64xf32> {
  %p = gq.weight @gate : tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>>
  %q = gq.weight @up : tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>>
  %both = gq.concat %p, %q : tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>>, tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>
  %w = gq.dcast %both : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128xf32>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xf32>, tensor<64x128xf32>) -> tensor<?x64xf32>
  func.return %y : tensor<?x64xf32>
}
