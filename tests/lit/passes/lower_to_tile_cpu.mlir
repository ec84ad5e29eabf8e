// lower-to-tile for a CPU: rows of the weight are lanes of a panel of 64. The dot is of codes, one
// group in a step; its scale comes after: acc + s·(x·q) + c·Σx, with c = z, or −s·z. Where x is f32,
// the middle is taken from unsigned codes first.
// RUN: gqc-opt %s -p lower-to-tile{target=cpu_avx512} | filecheck %s

// CHECK:      func.func @rescale(%x: tensor<?x64xf32>, %w: tensor<2x8x64xi32>, %s: tensor<2x2x64xf16>, %z: tensor<2x2x64xf16>, %b: tensor<100xf32>) -> tensor<?x100xf32> {
// CHECK-NEXT:   %y = gq.launch [@matmul_f32_ui4_g32_f16_rescale_f16_100x64_bias_any] rows [-1] on(%x : tensor<?x64xf32>) weights(%w, %s, %z : tensor<2x8x64xi32>, tensor<2x2x64xf16>, tensor<2x2x64xf16>) bias(%b : tensor<100xf32>) {decision = #gq.decision<emulated, "why">} -> tensor<?x100xf32>
// CHECK-NEXT:   func.return %y : tensor<?x100xf32>
// CHECK-NEXT: }

// CHECK:      func.func @quantized(%x: tensor<?x64xbf16>, %w: tensor<1x8x64xi32>, %s: tensor<1x2x64xf16>, %z: tensor<1x2x8xi32>) -> tensor<?x64xbf16> {
// CHECK-NEXT:   %y = gq.launch [@matmul_bf16_ui4_g32_f16_quantized_ui4_64x64_any] rows [-1] on(%x : tensor<?x64xbf16>) weights(%w, %s, %z : tensor<1x8x64xi32>, tensor<1x2x64xf16>, tensor<1x2x8xi32>) {decision = #gq.decision<emulated, "why">} -> tensor<?x64xbf16>
// CHECK-NEXT:   func.return %y : tensor<?x64xbf16>
// CHECK-NEXT: }

// CHECK:      func.func @one_bit(%x: tensor<?x64xbf16>, %w: tensor<1x2x64xi32>, %s: tensor<1x4x64xf16>, %z: tensor<1x4x64xf16>) -> tensor<?x64xbf16> {
// CHECK-NEXT:   %y = gq.launch [@matmul_bf16_ui1_g16_f16_original_f16_64x64_any] rows [-1] on(%x : tensor<?x64xbf16>) weights(%w, %s, %z : tensor<1x2x64xi32>, tensor<1x4x64xf16>, tensor<1x4x64xf16>) {decision = #gq.decision<emulated, "why">} -> tensor<?x64xbf16>
// CHECK-NEXT:   func.return %y : tensor<?x64xbf16>
// CHECK-NEXT: }

// 8 rows of x, 4-bit codes q·s + z; bias.
// CHECK:      tile.kernel @matmul_f32_ui4_g32_f16_rescale_f16_100x64_bias_any(%x: memref<?x64xf32>, %w: memref<2x8x64xi32>, %scale: memref<2x2x64xf16>, %zero: memref<2x2x64xf16>, %bias: memref<100xf32>, %y: memref<?x100xf32>) tile<8, 64> attributes {summary = "y = x @ W.T + bias, with W = codes * scale + zero", target = "cpu_avx512", num_warps = 1 : i64, num_stages = 1 : i64} {
// CHECK-NEXT:   %c0 = arith.constant 0 : index
// CHECK-NEXT:   %c32 = arith.constant 32 : index
// CHECK-NEXT:   %c64 = arith.constant 64 : index
// CHECK-NEXT:   %c8 = arith.constant 8 : index
// CHECK-NEXT:   %pid_m = tile.program_id 0
// CHECK-NEXT:   %m = arith.muli %pid_m, %c8 : index
// CHECK-NEXT:   %pid_n = tile.program_id 1
// CHECK-NEXT:   %n = arith.muli %pid_n, %c64 : index
// CHECK-NEXT:   %panel = arith.divui %n, %c64 : index
// CHECK-NEXT:   %lane = arith.remui %n, %c64 : index
// CHECK-NEXT:   %acc = tile.full 0.000000e+00 : vector<8x64xf32>
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c64 step %c32 iter_args(%acc_2 = %acc) -> (vector<8x64xf32>) {
// CHECK-NEXT:     %x_tile = tile.load %x[%m, %k] : memref<?x64xf32> -> vector<8x32xf32>
// CHECK-NEXT:     %word = arith.divui %k, %c8 : index
// CHECK-NEXT:     %w_words = tile.load %w[%panel, %word, %lane] : memref<2x8x64xi32> -> vector<4x64xi32>
// CHECK-NEXT:     %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<4x64xi32>) -> vector<32x64xui4>
// CHECK-NEXT:     %g = arith.divui %k, %c32 : index
// CHECK-NEXT:     %s = tile.load %scale[%panel, %g, %lane] : memref<2x2x64xf16> -> vector<1x64xf16>
// CHECK-NEXT:     %s_1 = tile.cast %s : vector<1x64xf16> to vector<1x64xf32>
// CHECK-NEXT:     %z = tile.load %zero[%panel, %g, %lane] : memref<2x2x64xf16> -> vector<1x64xf16>
// CHECK-NEXT:     %z_1 = tile.cast %z : vector<1x64xf16> to vector<1x64xf32>
// CHECK-NEXT:     %0 = tile.full 8.000000e+00 : vector<1x64xf32>
// CHECK-NEXT:     %1 = arith.mulf %s_1, %0 : vector<1x64xf32>
// CHECK-NEXT:     %zero_1 = arith.addf %z_1, %1 : vector<1x64xf32>
// CHECK-NEXT:     %w_tile = tile.cast %codes : vector<32x64xui4> to vector<32x64xf32>
// CHECK-NEXT:     %2 = tile.full 8.000000e+00 : vector<32x64xf32>
// CHECK-NEXT:     %w_tile_1 = arith.subf %w_tile, %2 : vector<32x64xf32>
// CHECK-NEXT:     %3 = tile.full 0.000000e+00 : vector<8x64xf32>
// CHECK-NEXT:     %part = tile.dot %3, %x_tile, %w_tile_1 : vector<8x32xf32>, vector<32x64xf32> -> vector<8x64xf32>
// CHECK-NEXT:     %x_sum = tile.sum %x_tile axis = 1 : vector<8x32xf32> to vector<8x1xf32>
// CHECK-NEXT:     %4 = tile.broadcast %s_1 : vector<1x64xf32> to vector<8x64xf32>
// CHECK-NEXT:     %5 = arith.mulf %part, %4 : vector<8x64xf32>
// CHECK-NEXT:     %6 = arith.addf %acc_2, %5 : vector<8x64xf32>
// CHECK-NEXT:     %7 = tile.broadcast %x_sum : vector<8x1xf32> to vector<8x64xf32>
// CHECK-NEXT:     %8 = tile.broadcast %zero_1 : vector<1x64xf32> to vector<8x64xf32>
// CHECK-NEXT:     %9 = arith.mulf %7, %8 : vector<8x64xf32>
// CHECK-NEXT:     %10 = arith.addf %6, %9 : vector<8x64xf32>
// CHECK-NEXT:     scf.yield %10 : vector<8x64xf32>
// CHECK-NEXT:   }
// CHECK-NEXT:   %b = tile.load %bias[%n] : memref<100xf32> -> vector<64xf32>
// CHECK-NEXT:   %11 = tile.broadcast %b : vector<64xf32> to vector<8x64xf32>
// CHECK-NEXT:   %acc_3 = arith.addf %acc_1, %11 : vector<8x64xf32>
// CHECK-NEXT:   tile.store %acc_3, %y[%m, %n] : vector<8x64xf32>, memref<?x100xf32>
// CHECK-NEXT: }

// One row of x, (q − z)·s with packed integer z: 8 zero points in a word.
// CHECK:      tile.kernel @matmul_bf16_ui4_g32_f16_quantized_ui4_64x64_any(%x: memref<?x64xbf16>, %w: memref<1x8x64xi32>, %scale: memref<1x2x64xf16>, %zero: memref<1x2x8xi32>, %y: memref<?x64xbf16>) tile<1, 64> attributes {summary = "y = x @ W.T, with W = (codes - zero) * scale", target = "cpu_avx512", num_warps = 1 : i64, num_stages = 1 : i64} {
// CHECK-NEXT:   %c0 = arith.constant 0 : index
// CHECK-NEXT:   %c32 = arith.constant 32 : index
// CHECK-NEXT:   %c8 = arith.constant 8 : index
// CHECK-NEXT:   %c64 = arith.constant 64 : index
// CHECK-NEXT:   %c1 = arith.constant 1 : index
// CHECK-NEXT:   %pid_m = tile.program_id 0
// CHECK-NEXT:   %m = arith.muli %pid_m, %c1 : index
// CHECK-NEXT:   %pid_n = tile.program_id 1
// CHECK-NEXT:   %n = arith.muli %pid_n, %c64 : index
// CHECK-NEXT:   %panel = arith.divui %n, %c64 : index
// CHECK-NEXT:   %lane = arith.remui %n, %c64 : index
// CHECK-NEXT:   %acc = tile.full 0.000000e+00 : vector<1x64xf32>
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c64 step %c32 iter_args(%acc_2 = %acc) -> (vector<1x64xf32>) {
// CHECK-NEXT:     %x_tile = tile.load %x[%m, %k] : memref<?x64xbf16> -> vector<1x32xbf16>
// CHECK-NEXT:     %word = arith.divui %k, %c8 : index
// CHECK-NEXT:     %w_words = tile.load %w[%panel, %word, %lane] : memref<1x8x64xi32> -> vector<4x64xi32>
// CHECK-NEXT:     %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<4x64xi32>) -> vector<32x64xui4>
// CHECK-NEXT:     %g = arith.divui %k, %c32 : index
// CHECK-NEXT:     %s = tile.load %scale[%panel, %g, %lane] : memref<1x2x64xf16> -> vector<1x64xf16>
// CHECK-NEXT:     %s_1 = tile.cast %s : vector<1x64xf16> to vector<1x64xf32>
// CHECK-NEXT:     %lane_word = arith.divui %lane, %c8 : index
// CHECK-NEXT:     %zero_words = tile.load %zero[%panel, %g, %lane_word] : memref<1x2x8xi32> -> vector<1x8xi32>
// CHECK-NEXT:     %0 = tile.unpack %zero_words axis = 1 : (vector<1x8xi32>) -> vector<1x64xui4>
// CHECK-NEXT:     %z = tile.cast %0 : vector<1x64xui4> to vector<1x64xf32>
// CHECK-NEXT:     %w_tile = tile.cast %codes : vector<32x64xui4> to vector<32x64xbf16>
// CHECK-NEXT:     %1 = tile.full 0.000000e+00 : vector<1x64xf32>
// CHECK-NEXT:     %part = tile.dot %1, %x_tile, %w_tile : vector<1x32xbf16>, vector<32x64xbf16> -> vector<1x64xf32>
// CHECK-NEXT:     %x_sum = tile.sum %x_tile axis = 1 : vector<1x32xbf16> to vector<1x1xf32>
// CHECK-NEXT:     %2 = arith.mulf %part, %s_1 : vector<1x64xf32>
// CHECK-NEXT:     %3 = arith.addf %acc_2, %2 : vector<1x64xf32>
// CHECK-NEXT:     %4 = tile.broadcast %x_sum : vector<1x1xf32> to vector<1x64xf32>
// CHECK-NEXT:     %offset = arith.mulf %s_1, %z : vector<1x64xf32>
// CHECK-NEXT:     %5 = arith.mulf %4, %offset : vector<1x64xf32>
// CHECK-NEXT:     %6 = arith.subf %3, %5 : vector<1x64xf32>
// CHECK-NEXT:     scf.yield %6 : vector<1x64xf32>
// CHECK-NEXT:   }
// CHECK-NEXT:   %y_tile = tile.cast %acc_1 : vector<1x64xf32> to vector<1x64xbf16>
// CHECK-NEXT:   tile.store %y_tile, %y[%m, %n] : vector<1x64xbf16>, memref<?x64xbf16>
// CHECK-NEXT: }

// Two groups in a word: the weight is scaled before the dot, in f32 so that it stays exact.
// CHECK:      tile.kernel @matmul_bf16_ui1_g16_f16_original_f16_64x64_any(%x: memref<?x64xbf16>, %w: memref<1x2x64xi32>, %scale: memref<1x4x64xf16>, %zero: memref<1x4x64xf16>, %y: memref<?x64xbf16>) tile<1, 64> attributes {summary = "y = x @ W.T, with W = (codes - zero) * scale", target = "cpu_avx512", num_warps = 1 : i64, num_stages = 1 : i64} {
// CHECK-NEXT:   %c0 = arith.constant 0 : index
// CHECK-NEXT:   %c16 = arith.constant 16 : index
// CHECK-NEXT:   %c32 = arith.constant 32 : index
// CHECK-NEXT:   %c64 = arith.constant 64 : index
// CHECK-NEXT:   %c1 = arith.constant 1 : index
// CHECK-NEXT:   %pid_m = tile.program_id 0
// CHECK-NEXT:   %m = arith.muli %pid_m, %c1 : index
// CHECK-NEXT:   %pid_n = tile.program_id 1
// CHECK-NEXT:   %n = arith.muli %pid_n, %c64 : index
// CHECK-NEXT:   %panel = arith.divui %n, %c64 : index
// CHECK-NEXT:   %lane = arith.remui %n, %c64 : index
// CHECK-NEXT:   %acc = tile.full 0.000000e+00 : vector<1x64xf32>
// CHECK-NEXT:   %acc_1 = scf.for %k = %c0 to %c64 step %c32 iter_args(%acc_2 = %acc) -> (vector<1x64xf32>) {
// CHECK-NEXT:     %x_tile = tile.load %x[%m, %k] : memref<?x64xbf16> -> vector<1x32xbf16>
// CHECK-NEXT:     %word = arith.divui %k, %c32 : index
// CHECK-NEXT:     %w_words = tile.load %w[%panel, %word, %lane] : memref<1x2x64xi32> -> vector<1x64xi32>
// CHECK-NEXT:     %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<1x64xi32>) -> vector<32x64xui1>
// CHECK-NEXT:     %g = arith.divui %k, %c16 : index
// CHECK-NEXT:     %s = tile.load %scale[%panel, %g, %lane] : memref<1x4x64xf16> -> vector<2x64xf16>
// CHECK-NEXT:     %s_1 = tile.cast %s : vector<2x64xf16> to vector<2x64xf32>
// CHECK-NEXT:     %z = tile.load %zero[%panel, %g, %lane] : memref<1x4x64xf16> -> vector<2x64xf16>
// CHECK-NEXT:     %z_1 = tile.cast %z : vector<2x64xf16> to vector<2x64xf32>
// CHECK-NEXT:     %q = tile.cast %codes : vector<32x64xui1> to vector<32x64xf32>
// CHECK-NEXT:     %0 = tile.repeat %s_1 axis = 0 times = 16 : vector<2x64xf32> to vector<32x64xf32>
// CHECK-NEXT:     %1 = tile.repeat %z_1 axis = 0 times = 16 : vector<2x64xf32> to vector<32x64xf32>
// CHECK-NEXT:     %2 = arith.subf %q, %1 : vector<32x64xf32>
// CHECK-NEXT:     %w_tile = arith.mulf %2, %0 : vector<32x64xf32>
// CHECK-NEXT:     %x_tile_1 = tile.cast %x_tile : vector<1x32xbf16> to vector<1x32xf32>
// CHECK-NEXT:     %acc_3 = tile.dot %acc_2, %x_tile_1, %w_tile : vector<1x32xf32>, vector<32x64xf32> -> vector<1x64xf32>
// CHECK-NEXT:     scf.yield %acc_3 : vector<1x64xf32>
// CHECK-NEXT:   }
// CHECK-NEXT:   %y_tile = tile.cast %acc_1 : vector<1x64xf32> to vector<1x64xbf16>
// CHECK-NEXT:   tile.store %y_tile, %y[%m, %n] : vector<1x64xbf16>, memref<?x64xbf16>
// CHECK-NEXT: }

// CHECK-NOT: tile.kernel
func.func @rescale(%x : tensor<?x64xf32>, %w : tensor<2x8x64xi32>, %s : tensor<2x2x64xf16>, %z : tensor<2x2x64xf16>, %b : tensor<100xf32>) -> tensor<?x100xf32> {
  %q = gq.unpack %w, %s, %z layout <lane_words, lanes = 64> : tensor<2x8x64xi32>, tensor<2x2x64xf16>, tensor<2x2x64xf16> -> tensor<100x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %d = gq.dcast %q : tensor<100x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<100x64xf32>
  %y = gq.matmul_t %x, %d bias %b decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 8x64x32, scale = after, warps = 1, stages = 1>] : (tensor<?x64xf32>, tensor<100x64xf32>, tensor<100xf32>) -> tensor<?x100xf32>
  func.return %y : tensor<?x100xf32>
}

func.func @quantized(%x : tensor<?x64xbf16>, %w : tensor<1x8x64xi32>, %s : tensor<1x2x64xf16>, %z : tensor<1x2x8xi32>) -> tensor<?x64xbf16> {
  %q = gq.unpack %w, %s, %z layout <lane_words, lanes = 64> : tensor<1x8x64xi32>, tensor<1x2x64xf16>, tensor<1x2x8xi32> -> tensor<64x64x!gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = quantized>>
  %d = gq.dcast %q : tensor<64x64x!gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = quantized>> -> tensor<64x64xbf16>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 1x64x32, scale = after, warps = 1, stages = 1>] : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

func.func @one_bit(%x : tensor<?x64xbf16>, %w : tensor<1x2x64xi32>, %s : tensor<1x4x64xf16>, %z : tensor<1x4x64xf16>) -> tensor<?x64xbf16> {
  %q = gq.unpack %w, %s, %z layout <lane_words, lanes = 64> : tensor<1x2x64xi32>, tensor<1x4x64xf16>, tensor<1x4x64xf16> -> tensor<64x64x!gq.block_scaled<1x16 : f16 : ui1, zero = f16, zero_mode = original>>
  %d = gq.dcast %q : tensor<64x64x!gq.block_scaled<1x16 : f16 : ui1, zero = f16, zero_mode = original>> -> tensor<64x64xbf16>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 1x64x32, scale = before, warps = 1, stages = 1>] : (tensor<?x64xbf16>, tensor<64x64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
