// lower-to-tile for a GPU: a matmul on a packed weight becomes a launch, and a kernel at the module's
// end. The weight tile is scaled before the dot and is its left operand, so the accumulator is [BN, BM];
// bias is added where the tile is stored. Layers of equal format and shape share a kernel.
// RUN: gqc-opt %s -p lower-to-tile{target=sm_90} | filecheck %s

// CHECK:      func.func @rescale(%x: tensor<?x128xf16>, %w: tensor<64x16xi32>, %s: tensor<4x64xf16>, %z: tensor<4x64xf16>, %b: tensor<64xf16>) -> tensor<?x64xf16> {
// CHECK-NEXT:   %y = gq.launch [@matmul_f16_ui4_g32_f16_rescale_f16_64x128_bias_any] rows [-1] on(%x : tensor<?x128xf16>) weights(%w, %s, %z : tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16>) bias(%b : tensor<64xf16>) {decision = #gq.decision<emulated, "why">} -> tensor<?x64xf16>
// CHECK-NEXT:   func.return %y : tensor<?x64xf16>
// CHECK-NEXT: }

// CHECK:      func.func @same_shape(%x: tensor<?x128xf16>, %w: tensor<64x16xi32>, %s: tensor<4x64xf16>, %z: tensor<4x64xf16>, %b: tensor<64xf16>) -> tensor<?x64xf16> {
// CHECK-NEXT:   %y = gq.launch [@matmul_f16_ui4_g32_f16_rescale_f16_64x128_bias_any] rows [-1] on(%x : tensor<?x128xf16>) weights(%w, %s, %z : tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16>) bias(%b : tensor<64xf16>) {decision = #gq.decision<emulated, "why">} -> tensor<?x64xf16>
// CHECK-NEXT:   func.return %y : tensor<?x64xf16>
// CHECK-NEXT: }

// CHECK:      func.func @row(%x: tensor<?x128xbf16>, %w2: tensor<64x8xi32>, %w1: tensor<64x4xi32>, %s: tensor<1x64xbf16>, %z2: tensor<1x4xi32>, %z1: tensor<1x2xi32>) -> tensor<?x64xbf16> {
// CHECK-NEXT:   %y = gq.launch [@matmul_bf16_ui3_row_bf16_quantized_ui3_64x128_any] rows [-1] on(%x : tensor<?x128xbf16>) weights(%w2, %w1, %s, %z2, %z1 : tensor<64x8xi32>, tensor<64x4xi32>, tensor<1x64xbf16>, tensor<1x4xi32>, tensor<1x2xi32>) {decision = #gq.decision<emulated, "why">} -> tensor<?x64xbf16>
// CHECK-NEXT:   func.return %y : tensor<?x64xbf16>
// CHECK-NEXT: }

// 4-bit codes q·s + z, z a float, two groups of 32 in a step of 64; bias.
// CHECK:      tile.kernel @matmul_f16_ui4_g32_f16_rescale_f16_64x128_bias_any(%x: memref<?x128xf16>, %w: memref<64x16xi32>, %scale: memref<4x64xf16>, %zero: memref<4x64xf16>, %bias: memref<64xf16>, %y: memref<?x64xf16>) tile<16, 32> attributes {summary = "y = x @ W.T + bias, with W = codes * scale + zero", target = "sm_90", num_warps = 4 : i64, num_stages = 3 : i64} {
// CHECK-NEXT:   %c64 = arith.constant 64 : index
// CHECK-NEXT:   %c128 = arith.constant 128 : index
// CHECK-NEXT:   %c0 = arith.constant 0 : index
// CHECK-NEXT:   %c8 = arith.constant 8 : index
// CHECK-NEXT:   %c32 = arith.constant 32 : index
// CHECK-NEXT:   %c16 = arith.constant 16 : index
// CHECK-NEXT:   %pid_m = tile.program_id 0
// CHECK-NEXT:   %m = arith.muli %pid_m, %c16 : index
// CHECK-NEXT:   %pid_n = tile.program_id 1
// CHECK-NEXT:   %n = arith.muli %pid_n, %c32 : index
// CHECK-NEXT:   %acc = tile.full 0.000000e+00 : vector<32x16xf32>
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c128 step %c64 iter_args(%acc_2 = %acc) -> (vector<32x16xf32>) {
// CHECK-NEXT:     %x_tile = tile.load %x[%m, %k] : memref<?x128xf16> -> vector<16x64xf16>
// CHECK-NEXT:     %word = arith.divui %k, %c8 : index
// CHECK-NEXT:     %w_words = tile.load %w[%n, %word] : memref<64x16xi32> -> vector<32x8xi32>
// CHECK-NEXT:     %codes = tile.unpack %w_words axis = 1 : (vector<32x8xi32>) -> vector<32x64xui4>
// CHECK-NEXT:     %g = arith.divui %k, %c32 : index
// CHECK-NEXT:     %s = tile.load %scale[%g, %n] : memref<4x64xf16> -> vector<2x32xf16>
// CHECK-NEXT:     %s_1 = tile.cast %s : vector<2x32xf16> to vector<2x32xf32>
// CHECK-NEXT:     %s_2 = tile.transpose %s_1 : vector<2x32xf32> to vector<32x2xf32>
// CHECK-NEXT:     %z = tile.load %zero[%g, %n] : memref<4x64xf16> -> vector<2x32xf16>
// CHECK-NEXT:     %z_1 = tile.cast %z : vector<2x32xf16> to vector<2x32xf32>
// CHECK-NEXT:     %z_2 = tile.transpose %z_1 : vector<2x32xf32> to vector<32x2xf32>
// CHECK-NEXT:     %q = tile.cast %codes : vector<32x64xui4> to vector<32x64xf32>
// CHECK-NEXT:     %0 = tile.repeat %s_2 axis = 1 times = 32 : vector<32x2xf32> to vector<32x64xf32>
// CHECK-NEXT:     %1 = tile.repeat %z_2 axis = 1 times = 32 : vector<32x2xf32> to vector<32x64xf32>
// CHECK-NEXT:     %2 = arith.mulf %q, %0 : vector<32x64xf32>
// CHECK-NEXT:     %w_tile = arith.addf %2, %1 : vector<32x64xf32>
// CHECK-NEXT:     %w_tile_1 = tile.cast %w_tile : vector<32x64xf32> to vector<32x64xf16>
// CHECK-NEXT:     %3 = tile.transpose %x_tile : vector<16x64xf16> to vector<64x16xf16>
// CHECK-NEXT:     %acc_3 = tile.dot %acc_2, %w_tile_1, %3 : vector<32x64xf16>, vector<64x16xf16> -> vector<32x16xf32>
// CHECK-NEXT:     scf.yield %acc_3 : vector<32x16xf32>
// CHECK-NEXT:   }
// CHECK-NEXT:   %acc_4 = tile.transpose %acc_1 : vector<32x16xf32> to vector<16x32xf32>
// CHECK-NEXT:   %b = tile.load %bias[%n] : memref<64xf16> -> vector<32xf16>
// CHECK-NEXT:   %b_1 = tile.cast %b : vector<32xf16> to vector<32xf32>
// CHECK-NEXT:   %4 = tile.broadcast %b_1 : vector<32xf32> to vector<16x32xf32>
// CHECK-NEXT:   %acc_5 = arith.addf %acc_4, %4 : vector<16x32xf32>
// CHECK-NEXT:   %y_tile = tile.cast %acc_5 : vector<16x32xf32> to vector<16x32xf16>
// CHECK-NEXT:   tile.store %y_tile, %y[%m, %n] : vector<16x32xf16>, memref<?x64xf16>
// CHECK-NEXT: }

// 3-bit codes in two planes, (q − z)·s with packed integer z; one scale a row, loaded before the loop.
// CHECK:      tile.kernel @matmul_bf16_ui3_row_bf16_quantized_ui3_64x128_any(%x: memref<?x128xbf16>, %w2: memref<64x8xi32>, %w1: memref<64x4xi32>, %scale: memref<1x64xbf16>, %zero2: memref<1x4xi32>, %zero1: memref<1x2xi32>, %y: memref<?x64xbf16>) tile<16, 32> attributes {summary = "y = x @ W.T, with W = (codes - zero) * scale", target = "sm_90", num_warps = 4 : i64, num_stages = 3 : i64} {
// CHECK-NEXT:   %c64 = arith.constant 64 : index
// CHECK-NEXT:   %c128 = arith.constant 128 : index
// CHECK-NEXT:   %c0 = arith.constant 0 : index
// CHECK-NEXT:   %c32 = arith.constant 32 : index
// CHECK-NEXT:   %c16 = arith.constant 16 : index
// CHECK-NEXT:   %pid_m = tile.program_id 0
// CHECK-NEXT:   %m = arith.muli %pid_m, %c16 : index
// CHECK-NEXT:   %pid_n = tile.program_id 1
// CHECK-NEXT:   %n = arith.muli %pid_n, %c32 : index
// CHECK-NEXT:   %acc = tile.full 0.000000e+00 : vector<32x16xf32>
// CHECK-NEXT:   %s = tile.load %scale[%c0, %n] : memref<1x64xbf16> -> vector<1x32xbf16>
// CHECK-NEXT:   %s_1 = tile.cast %s : vector<1x32xbf16> to vector<1x32xf32>
// CHECK-NEXT:   %s_2 = tile.transpose %s_1 : vector<1x32xf32> to vector<32x1xf32>
// CHECK-NEXT:   %n_word = arith.divui %n, %c16 : index
// CHECK-NEXT:   %zero2_words = tile.load %zero2[%c0, %n_word] : memref<1x4xi32> -> vector<1x2xi32>
// CHECK-NEXT:   %n_word_1 = arith.divui %n, %c32 : index
// CHECK-NEXT:   %zero1_words = tile.load %zero1[%c0, %n_word_1] : memref<1x2xi32> -> vector<1x1xi32>
// CHECK-NEXT:   %0 = tile.unpack %zero2_words, %zero1_words axis = 1 : (vector<1x2xi32>, vector<1x1xi32>) -> vector<1x32xui3>
// CHECK-NEXT:   %z = tile.cast %0 : vector<1x32xui3> to vector<1x32xf32>
// CHECK-NEXT:   %z_1 = tile.transpose %z : vector<1x32xf32> to vector<32x1xf32>
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c128 step %c64 iter_args(%acc_2 = %acc) -> (vector<32x16xf32>) {
// CHECK-NEXT:     %x_tile = tile.load %x[%m, %k] : memref<?x128xbf16> -> vector<16x64xbf16>
// CHECK-NEXT:     %word = arith.divui %k, %c16 : index
// CHECK-NEXT:     %w2_words = tile.load %w2[%n, %word] : memref<64x8xi32> -> vector<32x4xi32>
// CHECK-NEXT:     %word_1 = arith.divui %k, %c32 : index
// CHECK-NEXT:     %w1_words = tile.load %w1[%n, %word_1] : memref<64x4xi32> -> vector<32x2xi32>
// CHECK-NEXT:     %codes = tile.unpack %w2_words, %w1_words axis = 1 : (vector<32x4xi32>, vector<32x2xi32>) -> vector<32x64xui3>
// CHECK-NEXT:     %q = tile.cast %codes : vector<32x64xui3> to vector<32x64xf32>
// CHECK-NEXT:     %1 = tile.repeat %s_2 axis = 1 times = 64 : vector<32x1xf32> to vector<32x64xf32>
// CHECK-NEXT:     %2 = tile.repeat %z_1 axis = 1 times = 64 : vector<32x1xf32> to vector<32x64xf32>
// CHECK-NEXT:     %3 = arith.subf %q, %2 : vector<32x64xf32>
// CHECK-NEXT:     %w_tile = arith.mulf %3, %1 : vector<32x64xf32>
// CHECK-NEXT:     %w_tile_1 = tile.cast %w_tile : vector<32x64xf32> to vector<32x64xbf16>
// CHECK-NEXT:     %4 = tile.transpose %x_tile : vector<16x64xbf16> to vector<64x16xbf16>
// CHECK-NEXT:     %acc_3 = tile.dot %acc_2, %w_tile_1, %4 : vector<32x64xbf16>, vector<64x16xbf16> -> vector<32x16xf32>
// CHECK-NEXT:     scf.yield %acc_3 : vector<32x16xf32>
// CHECK-NEXT:   }
// CHECK-NEXT:   %acc_4 = tile.transpose %acc_1 : vector<32x16xf32> to vector<16x32xf32>
// CHECK-NEXT:   %y_tile = tile.cast %acc_4 : vector<16x32xf32> to vector<16x32xbf16>
// CHECK-NEXT:   tile.store %y_tile, %y[%m, %n] : vector<16x32xbf16>, memref<?x64xbf16>
// CHECK-NEXT: }

// CHECK-NOT: tile.kernel
func.func @rescale(%x : tensor<?x128xf16>, %w : tensor<64x16xi32>, %s : tensor<4x64xf16>, %z : tensor<4x64xf16>, %b : tensor<64xf16>) -> tensor<?x64xf16> {
  %q = gq.unpack %w, %s, %z layout <k_words> : tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %d = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<64x128xf16>
  %y = gq.matmul_t %x, %d bias %b decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 16x32x64, scale = before, warps = 4, stages = 3>] : (tensor<?x128xf16>, tensor<64x128xf16>, tensor<64xf16>) -> tensor<?x64xf16>
  func.return %y : tensor<?x64xf16>
}

func.func @same_shape(%x : tensor<?x128xf16>, %w : tensor<64x16xi32>, %s : tensor<4x64xf16>, %z : tensor<4x64xf16>, %b : tensor<64xf16>) -> tensor<?x64xf16> {
  %q = gq.unpack %w, %s, %z layout <k_words> : tensor<64x16xi32>, tensor<4x64xf16>, tensor<4x64xf16> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %d = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<64x128xf16>
  %y = gq.matmul_t %x, %d bias %b decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 16x32x64, scale = before, warps = 4, stages = 3>] : (tensor<?x128xf16>, tensor<64x128xf16>, tensor<64xf16>) -> tensor<?x64xf16>
  func.return %y : tensor<?x64xf16>
}

func.func @row(%x : tensor<?x128xbf16>, %w2 : tensor<64x8xi32>, %w1 : tensor<64x4xi32>, %s : tensor<1x64xbf16>, %z2 : tensor<1x4xi32>, %z1 : tensor<1x2xi32>) -> tensor<?x64xbf16> {
  %q = gq.unpack %w2, %w1, %s, %z2, %z1 layout <k_words> : tensor<64x8xi32>, tensor<64x4xi32>, tensor<1x64xbf16>, tensor<1x4xi32>, tensor<1x2xi32> -> tensor<64x128x!gq.block_scaled<1x? : bf16 : ui3, zero = ui3, zero_mode = quantized>>
  %d = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x? : bf16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x128xbf16>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 16x32x64, scale = before, warps = 4, stages = 3>] : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
