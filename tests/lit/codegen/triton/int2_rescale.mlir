// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int2_g32"},legalize{target=sm_90},assign-layouts{target=sm_90},split-m-buckets{target=sm_90},lower-to-tile{target=sm_90}' -t triton | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int2_g32_sym"},legalize{target=sm_90},assign-layouts{target=sm_90},split-m-buckets{target=sm_90},lower-to-tile{target=sm_90}' -t triton | filecheck %s --check-prefix SYM

// 2-bit codes, fp16: 16 codes a word. A step of K spans four groups, so their scales and offsets are
// repeated along K; the offset of a rescaled zero point is added after the scale.

// CHECK:      def matmul_f16_ui2_g32_f16_rescale_f16_128x256_m16(x, w, scale, zero, y, M):
// CHECK-NEXT:     """y = x @ W.T, with W = codes * scale + zero; each program makes a 16×64 tile of y.
// CHECK-EMPTY:
// CHECK-NEXT:     x: float16 [M, 256]
// CHECK-NEXT:     w: int32 [128, 16]
// CHECK-NEXT:     scale: float16 [8, 128]
// CHECK-NEXT:     zero: float16 [8, 128]
// CHECK-NEXT:     y: float16 [M, 128]
// CHECK:          for k in range(0, 256, 128):
// CHECK:              offs_word = k // 16 + tl.arange(0, 8)
// CHECK-NEXT:         w_words = tl.load(w + offs_n[:, None] * 16 + offs_word[None, :])
// CHECK-NEXT:         codes = split_pairs(unpack_pairs(w_words, 2))
// CHECK-NEXT:         offs_g = k // 32 + tl.arange(0, 4)
// CHECK-NEXT:         s = tl.load(scale + offs_g[:, None] * 128 + offs_n[None, :])
// CHECK-NEXT:         z = tl.load(zero + offs_g[:, None] * 128 + offs_n[None, :])
// CHECK-NEXT:         s_1 = repeat(tl.trans(s.to(tl.float32)), 32)
// CHECK-NEXT:         z_1 = repeat(tl.trans(z.to(tl.float32)), 32)
// CHECK-NEXT:         w_tile = codes.to(tl.float32) * s_1 + z_1
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.float16), tl.trans(x_tile), acc)

// Signed codes have their sign extended, and no zero point.
// SYM:        def matmul_f16_si2_g32_f16_128x256_m16(x, w, scale, y, M):
// SYM-NEXT:       """y = x @ W.T, with W = codes * scale; each program makes a 16×64 tile of y.
// SYM:                codes = (split_pairs(unpack_pairs(w_words, 2)) ^ 2) - 2
// SYM-NEXT:           offs_g = k // 32 + tl.arange(0, 4)
// SYM-NEXT:           s = tl.load(scale + offs_g[:, None] * 128 + offs_n[None, :])
// SYM-NEXT:           s_1 = repeat(tl.trans(s.to(tl.float32)), 32)
// SYM-NEXT:           w_tile = codes.to(tl.float32) * s_1
// SYM-NEXT:           acc = tl.dot(w_tile.to(tl.float16), tl.trans(x_tile), acc)

func.func @forward(%x : tensor<?x256xf16>) -> tensor<?x128xf16> {
  %w = gq.weight @fc.weight : tensor<128x256xf16>
  %y = gq.matmul_t %x, %w : (tensor<?x256xf16>, tensor<128x256xf16>) -> tensor<?x128xf16>
  func.return %y : tensor<?x128xf16>
}
