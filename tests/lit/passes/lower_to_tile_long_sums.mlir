// lower-to-tile for a CPU: where x is f32, so much of K is summed up by itself, then these sums.
// RUN: gqc-opt %s -p lower-to-tile{target=cpu_avx512} | filecheck %s

// CHECK:      tile.kernel @matmul_f32_si4_g32_f16_64x1536_any
// CHECK:        %acc = tile.full 0.000000e+00 : vector<1x64xf32>
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c1536 step %c512 iter_args(%acc_2 = %acc) -> (vector<1x64xf32>) {
// CHECK-NEXT:     %acc_3 = scf.for %k_1 = %c0 to %c512 step %c32 iter_args(%acc_4 = %acc) -> (vector<1x64xf32>) {
// CHECK-NEXT:       %k_2 = arith.addi %k, %k_1 : index
// CHECK-NEXT:       %x_tile = tile.load %x[%m, %k_2] : memref<?x1536xf32> -> vector<1x32xf32>
// CHECK:          %{{[0-9]+}} = arith.addf %acc_2, %acc_3 : vector<1x64xf32>
// CHECK-NEXT:     scf.yield %{{[0-9]+}} : vector<1x64xf32>
func.func @long(%x : tensor<?x1536xf32>, %w : tensor<1x192x64xi32>, %s : tensor<1x48x64xf16>) -> tensor<?x64xf32> {
  %q = gq.unpack %w, %s layout <lane_words, lanes = 64> : tensor<1x192x64xi32>, tensor<1x48x64xf16> -> tensor<64x1536x!gq.block_scaled<1x32 : f16 : si4>>
  %d = gq.dcast %q : tensor<64x1536x!gq.block_scaled<1x32 : f16 : si4>> -> tensor<64x1536xf32>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 1x64x32, scale = after, warps = 1, stages = 1>] : (tensor<?x1536xf32>, tensor<64x1536xf32>) -> tensor<?x64xf32>
  func.return %y : tensor<?x64xf32>
}
