// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=ui1 g64 scale=f32 zero=ui1 zero_mode=quantized quantizer=rtn scale_rule=minmax"},legalize{target=sm_90},assign-layouts{target=sm_90},split-m-buckets{target=sm_90},lower-to-tile{target=sm_90}' -t triton | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=ui8 g64 scale=f32 zero=ui8 zero_mode=quantized quantizer=rtn scale_rule=minmax"},legalize{target=sm_90},assign-layouts{target=sm_90},split-m-buckets{target=sm_90},lower-to-tile{target=sm_90}' -t triton | filecheck %s --check-prefix EIGHT

// One-bit codes with packed zero points. Codes lie along K and zero points along N, 32 to a word.

// CHECK:      def matmul_bf16_ui1_g64_f32_quantized_ui1_64x256_m16(x, w, scale, zero, y, M):
// CHECK-NEXT:     """y = x @ W.T, with W = (codes - zero) * scale; each program makes a 16×64 tile of y.
// CHECK-EMPTY:
// CHECK-NEXT:     x: bfloat16 [M, 256]
// CHECK-NEXT:     w: int32 [64, 8]
// CHECK-NEXT:     scale: float32 [4, 64]
// CHECK-NEXT:     zero: int32 [4, 2]
// CHECK:          n = tl.program_id(1) * 64
// CHECK:              offs_word = k // 32 + tl.arange(0, 4)
// CHECK-NEXT:         w_words = tl.load(w + offs_n[:, None] * 8 + offs_word[None, :])
// CHECK-NEXT:         codes = split_pairs(unpack_pairs(w_words, 1))
// CHECK-NEXT:         offs_g = k // 64 + tl.arange(0, 2)
// CHECK-NEXT:         s = tl.load(scale + offs_g[:, None] * 64 + offs_n[None, :])
// CHECK-NEXT:         offs_n_word = n // 32 + tl.arange(0, 2)
// CHECK-NEXT:         zero_words = tl.load(zero + offs_g[:, None] * 2 + offs_n_word[None, :])
// CHECK-NEXT:         zero_words_1 = split_pairs(unpack_pairs(zero_words, 1))
// CHECK-NEXT:         s_1 = repeat(tl.trans(s), 64)
// CHECK-NEXT:         zero_words_2 = repeat(tl.trans(zero_words_1.to(tl.float32)), 64)
// CHECK-NEXT:         w_tile = (codes.to(tl.float32) - zero_words_2) * s_1
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.bfloat16), tl.trans(x_tile), acc)

// Unsigned bytes, four to a word, and zero points that are bytes too: no sign is extended.
// EIGHT:      def matmul_bf16_ui8_g64_f32_quantized_ui8_64x256_m16(x, w, scale, zero, y, M):
// EIGHT:              offs_word = k // 4 + tl.arange(0, 32)
// EIGHT-NEXT:         w_words = tl.load(w + offs_n[:, None] * 64 + offs_word[None, :])
// EIGHT-NEXT:         codes = split_pairs(unpack_pairs(w_words, 8)){{$}}
// EIGHT:              offs_n_word = n // 4 + tl.arange(0, 16)
// EIGHT-NEXT:         zero_words = tl.load(zero + offs_g[:, None] * 16 + offs_n_word[None, :])
// EIGHT-NEXT:         zero_words_1 = split_pairs(unpack_pairs(zero_words, 8)){{$}}

func.func @forward(%x : tensor<?x256xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @fc.weight : tensor<64x256xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x256xbf16>, tensor<64x256xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
