// lower-to-tile: a program of one of two parts of K begins where the part does; their sums are added
// before what is done once for a tile: the bias, the rounding, the store.
// RUN: gqc-opt %s -p lower-to-tile{target=cpu_avx512bf16} | filecheck %s

// CHECK:      tile.kernel @matmul_bf16_ui4_g32_f16_64x128_bias_m1(
// CHECK:        %pid_part = tile.program_id 2
// CHECK-NEXT:   %part = arith.muli %pid_part, %c64 : index
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c64 step %c32 iter_args(%acc_2 = %acc) -> (vector<1x64xf32>) {
// CHECK-NEXT:     %k_1 = arith.addi %part, %k : index
// CHECK-NEXT:     %x_tile = tile.load %x[%m, %k_1]
// CHECK:        %acc_3 = tile.add_parts %acc_1 parts = 2 : vector<1x64xf32>
// CHECK-NEXT:   %b = tile.load %bias
// CHECK:        tile.store
func.func @forward(%x : tensor<?x128xbf16>, %w : tensor<1x16x64xi32>, %s : tensor<1x4x64xf16>, %b : tensor<64xbf16>) -> tensor<?x64xbf16> {
  %q = gq.unpack %w, %s layout <lane_words, lanes = 64> : tensor<1x16x64xi32>, tensor<1x4x64xf16> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>
  %d = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128xbf16>
  %y = gq.matmul_t %x, %d bias %b decision <emulated, "why"> schedules [#gq.schedule<rows = 1, tile = 1x64x32, scale = after, warps = 1, stages = 1, parts = 2>, #gq.schedule<rows = *, tile = 4x64x32, scale = after, warps = 1, stages = 1>] : (tensor<?x128xbf16>, tensor<64x128xbf16>, tensor<64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
