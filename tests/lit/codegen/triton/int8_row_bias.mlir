// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=int8_row_sym"},legalize{target=sm_90},assign-layouts{target=sm_90},split-m-buckets{target=sm_90},lower-to-tile{target=sm_90}' -t triton | filecheck %s

// Signed 8-bit codes, bf16, a bias. The whole row has one scale, loaded before the loop; N = 60 and
// K = 96 are no multiples of the tile, so every load and the store are masked.

// CHECK:      def matmul_bf16_si8_row_f16_60x96_bias_m16(x, w, scale, bias, y, M):
// CHECK-NEXT:     """y = x @ W.T + bias, with W = codes * scale; each program makes a 16×64 tile of y.
// CHECK-EMPTY:
// CHECK-NEXT:     x: bfloat16 [M, 96]
// CHECK-NEXT:     w: int32 [60, 24]
// CHECK-NEXT:     scale: float16 [1, 60]
// CHECK-NEXT:     bias: bfloat16 [60]
// CHECK-NEXT:     y: bfloat16 [M, 60]
// CHECK-NEXT:     """
// CHECK-NEXT:     offs_m = (tl.program_id(0) * 16 + tl.arange(0, 16)).to(tl.int64)
// CHECK-NEXT:     offs_n = tl.program_id(1) * 64 + tl.arange(0, 64)
// CHECK-NEXT:     s = tl.load(scale + offs_n[None, :], mask=offs_n[None, :] < 60, other=0)
// CHECK-NEXT:     s_1 = tl.trans(s.to(tl.float32))
// CHECK-NEXT:     acc = tl.full((64, 16), 0.0, tl.float32)
// CHECK-NEXT:     for k in range(0, 96, 128):
// CHECK-NEXT:         offs_k = k + tl.arange(0, 128)
// CHECK-NEXT:         x_tile = tl.load(
// CHECK-NEXT:             x + offs_m[:, None] * 96 + offs_k[None, :],
// CHECK-NEXT:             mask=(offs_m[:, None] < M) & (offs_k[None, :] < 96),
// CHECK-NEXT:             other=0,
// CHECK-NEXT:         )
// CHECK-NEXT:         offs_word = k // 4 + tl.arange(0, 32)
// CHECK-NEXT:         w_words = tl.load(
// CHECK-NEXT:             w + offs_n[:, None] * 24 + offs_word[None, :],
// CHECK-NEXT:             mask=(offs_n[:, None] < 60) & (offs_word[None, :] < 24),
// CHECK-NEXT:             other=0,
// CHECK-NEXT:         )
// CHECK-NEXT:         codes = (split_pairs(unpack_pairs(w_words, 8)) ^ 128) - 128
// CHECK-NEXT:         w_tile = codes.to(tl.float32) * s_1
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.bfloat16), tl.trans(x_tile), acc)
// CHECK-NEXT:     b = tl.load(bias + offs_n, mask=offs_n < 60, other=0)
// CHECK-NEXT:     acc_1 = tl.trans(acc) + b.to(tl.float32)[None, :]
// CHECK-NEXT:     tl.store(
// CHECK-NEXT:         y + offs_m[:, None] * 60 + offs_n[None, :],
// CHECK-NEXT:         acc_1.to(tl.bfloat16),
// CHECK-NEXT:         mask=(offs_m[:, None] < M) & (offs_n[None, :] < 60),
// CHECK-NEXT:     )

func.func @forward(%x : tensor<?x96xbf16>) -> tensor<?x60xbf16> {
  %w = gq.weight @fc.weight : tensor<60x96xbf16>
  %b = gq.weight @fc.bias : tensor<60xbf16>
  %y = gq.matmul_t %x, %w bias %b : (tensor<?x96xbf16>, tensor<60x96xbf16>, tensor<60xbf16>) -> tensor<?x60xbf16>
  func.return %y : tensor<?x60xbf16>
}
