// lower-to-tile for many rows on a CPU: a program decodes a panel of weights to memory of its own,
// and multiplies its block of rows by it.
// RUN: gqc-opt %s -p lower-to-tile{target=cpu_avx512bf16} | filecheck %s
// RUN: gqc-opt %s -p lower-to-tile{target=cpu_avx512bf16} | gqc-opt | filecheck %s

// CHECK:      tile.kernel @matmul_bf16_ui4_g64_f16_rescale_f16_64x128_any(%x: memref<?x128xbf16>, %w: memref<1x16x64xi32>, %scale: memref<1x2x64xf16>, %zero: memref<1x2x64xf16>, %y: memref<?x64xbf16>) tile<256, 256> attributes {summary = "y = x @ W.T, with W = codes * scale + zero", target = "cpu_avx512bf16", num_warps = 1 : i64, num_stages = 1 : i64} {
// CHECK:        %size = memref.dim %x, %c0 : memref<?x128xbf16>
// CHECK-NEXT:   %0 = arith.subi %size, %first : index
// CHECK-NEXT:   %end = arith.minui %0, %c256 : index
// CHECK-NEXT:   %decoded = memref.alloca() : memref<128x64xbf16>
// CHECK-NEXT:   %sums = memref.alloca() : memref<256x64xf32>
// CHECK-NEXT:   %x_sums = memref.alloca() : memref<256x2xf32>
// CHECK-NEXT:   scf.for %row = %c0 to %end step %c1 {
// CHECK-NEXT:     %m = arith.addi %first, %row : index
// CHECK-NEXT:     scf.for %k = %c0 to %c128 step %c64 {
// CHECK-NEXT:       %x_tile = tile.load %x[%m, %k] : memref<?x128xbf16> -> vector<1x64xbf16>
// CHECK-NEXT:       %1 = tile.sum %x_tile axis = 1 : vector<1x64xbf16> to vector<1x1xf32>
// CHECK-NEXT:       %step = arith.divui %k, %c64 : index
// CHECK-NEXT:       tile.store %1, %x_sums[%row, %step] : vector<1x1xf32>, memref<256x2xf32>
// CHECK-NEXT:     }
// CHECK-NEXT:   }
// CHECK-NEXT:   %2 = arith.subi %c1, %first_panel : index
// CHECK-NEXT:   %panels = arith.minui %2, %c4 : index
// CHECK-NEXT:   scf.for %p = %c0 to %panels step %c1 {
// CHECK-NEXT:     %3 = arith.addi %first_panel, %p : index
// CHECK-NEXT:     %n = arith.muli %3, %c64 : index
// CHECK-NEXT:     %panel = arith.divui %n, %c64 : index
// CHECK-NEXT:     %lane = arith.remui %n, %c64 : index
// CHECK-NEXT:     scf.for %row_1 = %c0 to %end step %c1 {
// CHECK-NEXT:       %m_1 = arith.addi %first, %row_1 : index
// CHECK-NEXT:       %4 = tile.full 0.000000e+00 : vector<1x64xf32>
// CHECK-NEXT:       tile.store %4, %sums[%row_1, %c0] : vector<1x64xf32>, memref<256x64xf32>
// CHECK-NEXT:     }
// CHECK-NEXT:     scf.for %chunk = %c0 to %c128 step %c128 {
// CHECK-NEXT:       scf.for %place = %c0 to %c128 step %c64 {
// CHECK-NEXT:         %k_1 = arith.addi %chunk, %place : index
// CHECK-NEXT:         scf.for %column = %c0 to %c64 step %c16 {
// CHECK-NEXT:           %lane_1 = arith.addi %lane, %column : index
// CHECK-NEXT:           %word = arith.divui %k_1, %c8 : index
// CHECK-NEXT:           %w_words = tile.load %w[%panel, %word, %lane_1] : memref<1x16x64xi32> -> vector<8x16xi32>
// CHECK-NEXT:           %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<8x16xi32>) -> vector<64x16xui4>
// CHECK-NEXT:           %w_tile = tile.cast %codes : vector<64x16xui4> to vector<64x16xbf16>
// CHECK-NEXT:           tile.store %w_tile, %decoded[%place, %column] : vector<64x16xbf16>, memref<128x64xbf16>
// CHECK-NEXT:         }
// CHECK-NEXT:       }
// CHECK-NEXT:       scf.for %row_2 = %c0 to %end step %c4 {
// CHECK-NEXT:         %m_2 = arith.addi %first, %row_2 : index
// CHECK-NEXT:         scf.for %place_1 = %c0 to %c128 step %c64 {
// CHECK-NEXT:           %k_2 = arith.addi %chunk, %place_1 : index
// CHECK-NEXT:           %x_tile_1 = tile.load %x[%m_2, %k_2] : memref<?x128xbf16> -> vector<4x64xbf16>
// CHECK-NEXT:           %g = arith.divui %k_2, %c64 : index
// CHECK-NEXT:           %s = tile.load %scale[%panel, %g, %lane] : memref<1x2x64xf16> -> vector<1x64xf16>
// CHECK-NEXT:           %s_1 = tile.cast %s : vector<1x64xf16> to vector<1x64xf32>
// CHECK-NEXT:           %z = tile.load %zero[%panel, %g, %lane] : memref<1x2x64xf16> -> vector<1x64xf16>
// CHECK-NEXT:           %z_1 = tile.cast %z : vector<1x64xf16> to vector<1x64xf32>
// CHECK-NEXT:           %5 = tile.full 0.000000e+00 : vector<4x64xf32>
// CHECK-NEXT:           %w_tile_1 = tile.load %decoded[%place_1, %c0] : memref<128x64xbf16> -> vector<64x64xbf16>
// CHECK-NEXT:           %part = tile.dot %5, %x_tile_1, %w_tile_1 : vector<4x64xbf16>, vector<64x64xbf16> -> vector<4x64xf32>
// CHECK-NEXT:           %step_1 = arith.divui %k_2, %c64 : index
// CHECK-NEXT:           %x_sum = tile.load %x_sums[%row_2, %step_1] : memref<256x2xf32> -> vector<4x1xf32>
// CHECK-NEXT:           %acc = tile.load %sums[%row_2, %c0] : memref<256x64xf32> -> vector<4x64xf32>
// CHECK-NEXT:           %6 = tile.broadcast %s_1 : vector<1x64xf32> to vector<4x64xf32>
// CHECK-NEXT:           %7 = arith.mulf %part, %6 : vector<4x64xf32>
// CHECK-NEXT:           %8 = arith.addf %acc, %7 : vector<4x64xf32>
// CHECK-NEXT:           %9 = tile.broadcast %x_sum : vector<4x1xf32> to vector<4x64xf32>
// CHECK-NEXT:           %10 = tile.broadcast %z_1 : vector<1x64xf32> to vector<4x64xf32>
// CHECK-NEXT:           %11 = arith.mulf %9, %10 : vector<4x64xf32>
// CHECK-NEXT:           %12 = arith.addf %8, %11 : vector<4x64xf32>
// CHECK-NEXT:           tile.store %12, %sums[%row_2, %c0] : vector<4x64xf32>, memref<256x64xf32>
// CHECK-NEXT:         }
// CHECK-NEXT:       }
// CHECK-NEXT:     }
// CHECK-NEXT:     scf.for %row_3 = %c0 to %end step %c1 {
// CHECK-NEXT:       %m_3 = arith.addi %first, %row_3 : index
// CHECK-NEXT:       %acc_1 = tile.load %sums[%row_3, %c0] : memref<256x64xf32> -> vector<1x64xf32>
// CHECK-NEXT:       %y_tile = tile.cast %acc_1 : vector<1x64xf32> to vector<1x64xbf16>
// CHECK-NEXT:       tile.store %y_tile, %y[%m_3, %n] : vector<1x64xbf16>, memref<?x64xbf16>
// CHECK-NEXT:     }
// CHECK-NEXT:   }
// CHECK-NEXT: }

func.func @scaled_after(%x : tensor<?x128xbf16>, %w : tensor<1x16x64xi32>, %s : tensor<1x2x64xf16>, %z : tensor<1x2x64xf16>) -> tensor<?x64xbf16> {
  %q = gq.unpack %w, %s, %z layout <lane_words, lanes = 64> : tensor<1x16x64xi32>, tensor<1x2x64xf16>, tensor<1x2x64xf16> -> tensor<64x128x!gq.block_scaled<1x64 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %d = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x64 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<64x128xbf16>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> schedules [#gq.schedule<rows = *, tile = 4x64x64, scale = after, warps = 1, stages = 1, panel = 256>] : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
