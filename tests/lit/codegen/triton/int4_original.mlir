// RUN: gqc-opt %s -t triton | filecheck %s

// A whole kernel: 4-bit codes, a scale and a float zero point for 32 columns. N and K are multiples
// of the tile, so only the rows are masked.

// CHECK:      """Triton kernel matmul for sm_90, printed by gqc."""
// CHECK:      import triton
// CHECK-NEXT: import triton.language as tl

// CHECK:      @triton.jit
// CHECK-NEXT: def repeat(tile, TIMES: tl.constexpr):
// CHECK:      @triton.jit
// CHECK-NEXT: def split_pairs(pairs):
// CHECK:      @triton.jit
// CHECK-NEXT: def unpack_pairs(words, BITS: tl.constexpr):

// CHECK:      @triton.jit(do_not_specialize=["M"])
// CHECK-NEXT: def matmul(x, w, scale, zero, y, M):
// CHECK-NEXT:     """y from x, w, scale, zero; each program makes a 16×64 tile of y.
// CHECK-EMPTY:
// CHECK-NEXT:     x: float16 [M, 256]
// CHECK-NEXT:     w: int32 [512, 32]
// CHECK-NEXT:     scale: float16 [8, 512]
// CHECK-NEXT:     zero: float16 [8, 512]
// CHECK-NEXT:     y: float16 [M, 512]
// CHECK-NEXT:     """
// CHECK-NEXT:     offs_m = (tl.program_id(0) * 16 + tl.arange(0, 16)).to(tl.int64)
// CHECK-NEXT:     offs_n = tl.program_id(1) * 64 + tl.arange(0, 64)
// CHECK-NEXT:     acc = tl.full((64, 16), 0.0, tl.float32)
// CHECK-NEXT:     for k in range(0, 256, 128):
// CHECK-NEXT:         offs_k = k + tl.arange(0, 128)
// CHECK-NEXT:         x_tile = tl.load(
// CHECK-NEXT:             x + offs_m[:, None] * 256 + offs_k[None, :],
// CHECK-NEXT:             mask=offs_m[:, None] < M,
// CHECK-NEXT:             other=0,
// CHECK-NEXT:         )
// CHECK-NEXT:         offs_word = k // 8 + tl.arange(0, 16)
// CHECK-NEXT:         words = tl.load(w + offs_n[:, None] * 32 + offs_word[None, :])
// CHECK-NEXT:         codes = split_pairs(unpack_pairs(words, 4))
// CHECK-NEXT:         offs_g = k // 32 + tl.arange(0, 4)
// CHECK-NEXT:         s = tl.load(scale + offs_g[:, None] * 512 + offs_n[None, :])
// CHECK-NEXT:         z = tl.load(zero + offs_g[:, None] * 512 + offs_n[None, :])
// CHECK-NEXT:         s_1 = repeat(tl.trans(s.to(tl.float32)), 32)
// CHECK-NEXT:         z_1 = repeat(tl.trans(z.to(tl.float32)), 32)
// CHECK-NEXT:         w_tile = (codes.to(tl.float32) - z_1) * s_1
// CHECK-NEXT:         acc = tl.dot(w_tile.to(tl.float16), tl.trans(x_tile), acc)
// CHECK-NEXT:     tl.store(
// CHECK-NEXT:         y + offs_m[:, None] * 512 + offs_n[None, :],
// CHECK-NEXT:         tl.trans(acc).to(tl.float16),
// CHECK-NEXT:         mask=offs_m[:, None] < M,
// CHECK-NEXT:     )

// CHECK:      SIGNATURE = {"x": "*fp16", "w": "*i32", "scale": "*fp16", "zero": "*fp16", "y": "*fp16", "M": "i32"}
// CHECK-NEXT: OPTIONS = {"num_warps": 4, "num_stages": 3, "enable_fp_fusion": True}

// CHECK:      def grid(M):
// CHECK-NEXT:     return triton.cdiv(M, 16), 8, 1

// CHECK:      def launch(x, w, scale, zero, y):
// CHECK-NEXT:     """Fill y; tensors are contiguous and on one device."""
// CHECK-NEXT:     M = y.shape[0]
// CHECK-NEXT:     return matmul[grid(M)](x, w, scale, zero, y, M, **OPTIONS)

tile.kernel @matmul(%x: memref<?x256xf16>, %w: memref<512x32xi32>, %scale: memref<8x512xf16>, %zero: memref<8x512xf16>, %y: memref<?x512xf16>) tile<16, 64> attributes {target = "sm_90", num_warps = 4 : i64, num_stages = 3 : i64} {
  %c0 = arith.constant 0 : index
  %c8 = arith.constant 8 : index
  %c16 = arith.constant 16 : index
  %c32 = arith.constant 32 : index
  %c64 = arith.constant 64 : index
  %c128 = arith.constant 128 : index
  %c256 = arith.constant 256 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c16 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c64 : index
  %start = tile.full 0.0 : vector<64x16xf32>
  %total = scf.for %k = %c0 to %c256 step %c128 iter_args(%acc = %start) -> (vector<64x16xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x256xf16> -> vector<16x128xf16>
    %word = arith.divui %k, %c8 : index
    %words = tile.load %w[%n, %word] : memref<512x32xi32> -> vector<64x16xi32>
    %codes = tile.unpack %words axis = 1 : (vector<64x16xi32>) -> vector<64x128xui4>
    %g = arith.divui %k, %c32 : index
    %s = tile.load %scale[%g, %n] : memref<8x512xf16> -> vector<4x64xf16>
    %s32 = tile.cast %s : vector<4x64xf16> to vector<4x64xf32>
    %st = tile.transpose %s32 : vector<4x64xf32> to vector<64x4xf32>
    %z = tile.load %zero[%g, %n] : memref<8x512xf16> -> vector<4x64xf16>
    %z32 = tile.cast %z : vector<4x64xf16> to vector<4x64xf32>
    %zt = tile.transpose %z32 : vector<4x64xf32> to vector<64x4xf32>
    %q = tile.cast %codes : vector<64x128xui4> to vector<64x128xf32>
    %0 = tile.repeat %st axis = 1 times = 32 : vector<64x4xf32> to vector<64x128xf32>
    %1 = tile.repeat %zt axis = 1 times = 32 : vector<64x4xf32> to vector<64x128xf32>
    %2 = arith.subf %q, %1 : vector<64x128xf32>
    %w_tile = arith.mulf %2, %0 : vector<64x128xf32>
    %w16 = tile.cast %w_tile : vector<64x128xf32> to vector<64x128xf16>
    %xt = tile.transpose %x_tile : vector<16x128xf16> to vector<128x16xf16>
    %next = tile.dot %acc, %w16, %xt : vector<64x128xf16>, vector<128x16xf16> -> vector<64x16xf32>
    scf.yield %next : vector<64x16xf32>
  }
  %t = tile.transpose %total : vector<64x16xf32> to vector<16x64xf32>
  %y_tile = tile.cast %t : vector<16x64xf32> to vector<16x64xf16>
  tile.store %y_tile, %y[%m, %n] : vector<16x64xf16>, memref<?x512xf16>
}
