// RUN: gqc-opt %s -t triton | filecheck %s

// MXFP4: codes of floats decoded by moving their fields to float16's, under E8M0 scales, which are
// read as bytes: the exponents of float32.

// CHECK:      def decode_e8m0(codes):
// CHECK:          exponent = codes.to(tl.int32)
// CHECK-NEXT:     ends = tl.where(((exponent + 1) & 0xFE) == 0, 1 << 22, 0)
// CHECK-NEXT:     return (exponent << 23 | ends).to(tl.float32, bitcast=True)
// CHECK:      def decode_float(codes, BITS: tl.constexpr, MANTISSA: tl.constexpr, RATIO: tl.constexpr):
// CHECK:          bits = (wide & SIGN) << (16 - BITS) | (wide & (SIGN - 1)) << (10 - MANTISSA)
// CHECK-NEXT:     return bits.to(tl.float16, bitcast=True) * RATIO
// CHECK:          scale: uint8 [8, 512]
// CHECK:              codes = split_pairs(unpack_pairs(w_words, 4))
// CHECK-NEXT:         offs_g = k // 32 + tl.arange(0, 4)
// CHECK-NEXT:         s = tl.load(scale + offs_g[:, None] * 512 + offs_n[None, :])
// CHECK-NEXT:         s_1 = repeat(tl.trans(decode_e8m0(s).to(tl.float32)), 32)
// CHECK-NEXT:         w_tile = decode_float(codes, 4, 1, 16384.0).to(tl.float32) * s_1
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.bfloat16), tl.trans(x_tile), acc)
// CHECK:      SIGNATURE = {"x": "*bf16", "w": "*i32", "scale": "*u8", "y": "*bf16", "M": "i32"}
// CHECK:          return matmul[grid(M)](x, w, scale, y, M, **OPTIONS)

tile.kernel @matmul(%x: memref<?x256xbf16>, %w: memref<512x32xi32>, %scale: memref<8x512xf8E8M0FNU>, %y: memref<?x512xbf16>) tile<16, 64> attributes {summary = "y = x @ W.T, with W = codes * scale", target = "sm_90", num_warps = 4 : i64, num_stages = 4 : i64} {
  %c128 = arith.constant 128 : index
  %c256 = arith.constant 256 : index
  %c0 = arith.constant 0 : index
  %c32 = arith.constant 32 : index
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
    %codes = tile.unpack %w_words axis = 1 : (vector<64x16xi32>) -> vector<64x128xf4E2M1FN>
    %g = arith.divui %k, %c32 : index
    %s = tile.load %scale[%g, %n] : memref<8x512xf8E8M0FNU> -> vector<4x64xf8E8M0FNU>
    %s_1 = tile.cast %s : vector<4x64xf8E8M0FNU> to vector<4x64xf32>
    %s_2 = tile.transpose %s_1 : vector<4x64xf32> to vector<64x4xf32>
    %q = tile.cast %codes : vector<64x128xf4E2M1FN> to vector<64x128xf32>
    %0 = tile.repeat %s_2 axis = 1 times = 32 : vector<64x4xf32> to vector<64x128xf32>
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
