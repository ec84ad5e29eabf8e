// RUN: gqc-opt %s -t triton | filecheck %s

// NF4: codes of a codebook, each bit of which selects one of two values, under float32 scales.

// CHECK:      def decode_nf4(codes):
// CHECK:          v0_0 = tl.where((codes & 1) != 0, -0.6961928009986877, -1.0)
// CHECK:          v0_7 = tl.where((codes & 1) != 0, 1.0, 0.7229568362236023)
// CHECK-NEXT:     v1_0 = tl.where((codes & 2) != 0, v0_1, v0_0)
// CHECK:          v3_0 = tl.where((codes & 8) != 0, v2_1, v2_0)
// CHECK-NEXT:     return v3_0
// CHECK:              codes = split_pairs(unpack_pairs(w_words, 4))
// CHECK-NEXT:         offs_g = k // 64 + tl.arange(0, 2)
// CHECK-NEXT:         s = tl.load(scale + offs_g[:, None] * 512 + offs_n[None, :])
// CHECK-NEXT:         s_1 = repeat(tl.trans(s), 64)
// CHECK-NEXT:         w_tile = decode_nf4(codes).to(tl.float32) * s_1
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.bfloat16), tl.trans(x_tile), acc)
// CHECK:      SIGNATURE = {"x": "*bf16", "w": "*i32", "scale": "*fp32", "y": "*bf16", "M": "i32"}

tile.kernel @matmul(%x: memref<?x256xbf16>, %w: memref<512x32xi32>, %scale: memref<4x512xf32>, %y: memref<?x512xbf16>) tile<16, 64> attributes {summary = "y = x @ W.T, with W = codes * scale", target = "sm_90", num_warps = 4 : i64, num_stages = 4 : i64} {
  %c128 = arith.constant 128 : index
  %c256 = arith.constant 256 : index
  %c0 = arith.constant 0 : index
  %c64_g = arith.constant 64 : index
  %c8 = arith.constant 8 : index
  %c64 = arith.constant 64 : index
  %c16 = arith.constant 16 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c16 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c64 : index
  %acc = tile.full 0.000000e+00 : vector<64x16xf32>
  %acc_1 = scf.for %k = %c0 to %c256 step %c128 iter_args(%acc_2 = %acc) -> (vector<64x16xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x256xbf16> -> vector<16x128xbf16>
    %word = arith.divui %k, %c8 : index
    %w_words = tile.load %w[%n, %word] : memref<512x32xi32> -> vector<64x16xi32>
    %codes = tile.unpack %w_words axis = 1 : (vector<64x16xi32>) -> vector<64x128x!gq.nf4>
    %g = arith.divui %k, %c64_g : index
    %s = tile.load %scale[%g, %n] : memref<4x512xf32> -> vector<2x64xf32>
    %s_2 = tile.transpose %s : vector<2x64xf32> to vector<64x2xf32>
    %q = tile.cast %codes : vector<64x128x!gq.nf4> to vector<64x128xf32>
    %0 = tile.repeat %s_2 axis = 1 times = 64 : vector<64x2xf32> to vector<64x128xf32>
    %w_tile = arith.mulf %q, %0 : vector<64x128xf32>
    %w_tile_1 = tile.cast %w_tile : vector<64x128xf32> to vector<64x128xbf16>
    %1 = tile.transpose %x_tile : vector<16x128xbf16> to vector<128x16xbf16>
    %acc_3 = tile.dot %acc_2, %w_tile_1, %1 : vector<64x128xbf16>, vector<128x16xbf16> -> vector<64x16xf32>
    scf.yield %acc_3 : vector<64x16xf32>
  }
  %acc_4 = tile.transpose %acc_1 : vector<64x16xf32> to vector<16x64xf32>
  %y_tile = tile.cast %acc_4 : vector<16x64xf32> to vector<16x64xbf16>
  tile.store %y_tile, %y[%m, %n] : vector<16x64xbf16>, memref<?x512xbf16>
}
