// RUN: gqc-opt %s -t triton | filecheck %s

// NVFP4: E4M3 scales, decoded like codes but for their NaN, and one scale of the whole tensor, which
// multiplies the sum.

// CHECK:      def keep_nan(values, codes, NAN: tl.constexpr):
// CHECK:          return tl.where((codes & NAN) == NAN, float("nan"), values)
// CHECK:          scale: uint8 [16, 512]
// CHECK-NEXT:     tensor_scale: float32 [1]
// CHECK:              s_1 = keep_nan(decode_float(s, 8, 3, 256.0), s, 127).to(tl.float32)
// CHECK-NEXT:         s_2 = repeat(tl.trans(s_1), 16)
// CHECK-NEXT:         w_tile = decode_float(codes, 4, 1, 16384.0).to(tl.float32) * s_2
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.bfloat16), tl.trans(x_tile), acc)
// CHECK-NEXT:     tensor_scale_1 = tl.load(tensor_scale + offs_c0)
// CHECK-NEXT:     acc_1 = tl.trans(acc) * tensor_scale_1[None, :]

tile.kernel @matmul(%x: memref<?x256xbf16>, %w: memref<512x32xi32>, %scale: memref<16x512xf8E4M3FN>, %tensor_scale: memref<1xf32>, %y: memref<?x512xbf16>) tile<16, 64> attributes {summary = "y = x @ W.T * tensor_scale, with W = codes * scale", target = "sm_90", num_warps = 4 : i64, num_stages = 4 : i64} {
  %c128 = arith.constant 128 : index
  %c256 = arith.constant 256 : index
  %c0 = arith.constant 0 : index
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
    %g = arith.divui %k, %c16 : index
    %s = tile.load %scale[%g, %n] : memref<16x512xf8E4M3FN> -> vector<8x64xf8E4M3FN>
    %s_1 = tile.cast %s : vector<8x64xf8E4M3FN> to vector<8x64xf32>
    %s_2 = tile.transpose %s_1 : vector<8x64xf32> to vector<64x8xf32>
    %q = tile.cast %codes : vector<64x128xf4E2M1FN> to vector<64x128xf32>
    %0 = tile.repeat %s_2 axis = 1 times = 16 : vector<64x8xf32> to vector<64x128xf32>
    %w_tile = arith.mulf %q, %0 : vector<64x128xf32>
    %w_tile_1 = tile.cast %w_tile : vector<64x128xf32> to vector<64x128xbf16>
    %1 = tile.transpose %x_tile : vector<16x128xbf16> to vector<128x16xbf16>
    %acc_3 = tile.dot %acc_2, %w_tile_1, %1 : vector<64x128xbf16>, vector<128x16xbf16> -> vector<64x16xf32>
    scf.yield %acc_3 : vector<64x16xf32>
  }
  %acc_4 = tile.transpose %acc_1 : vector<64x16xf32> to vector<16x64xf32>
  %tensor_scale_1 = tile.load %tensor_scale[%c0] : memref<1xf32> -> vector<1xf32>
  %2 = tile.broadcast %tensor_scale_1 : vector<1xf32> to vector<16x64xf32>
  %acc_5 = arith.mulf %acc_4, %2 : vector<16x64xf32>
  %y_tile = tile.cast %acc_5 : vector<16x64xf32> to vector<16x64xbf16>
  tile.store %y_tile, %y[%m, %n] : vector<16x64xbf16>, memref<?x512xbf16>
}
