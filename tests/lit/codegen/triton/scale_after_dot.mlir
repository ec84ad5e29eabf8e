// RUN: gqc-opt %s -t triton | filecheck %s

// Signed codes unpacked along the first dimension, a dot in f32 (asked for in full: no TF32), and
// the scale applied after it, with the zero point times the sum of x.

// CHECK-LABEL: def scale_after(x, w, scale, zero, y, M):
// CHECK:              codes = (tl.trans(split_pairs(unpack_pairs(tl.trans(words), 4))) ^ 8) - 8
// CHECK-NEXT:         g = k // 32
// CHECK-NEXT:         s = tl.load(scale + g * 64 + offs_c0)
// CHECK-NEXT:         z = tl.load(zero + g * 64 + offs_c0[None, :])
// CHECK-NEXT:         part = tl.dot(
// CHECK-NEXT:             x_tile,
// CHECK-NEXT:             codes.to(tl.float32),
// CHECK-NEXT:             tl.full((16, 64), 0.0, tl.float32),
// CHECK-NEXT:             input_precision="ieee",
// CHECK-NEXT:         )
// CHECK-NEXT:         x_sum = tl.sum(x_tile, axis=1, keep_dims=True)
// CHECK-NEXT:         scaled = part * s[None, :] + x_sum * tl.broadcast_to(z, (16, 64))
// CHECK-NEXT:         acc = acc + scaled
// CHECK-NEXT:     tl.store(y + offs_m[:, None] * 64 + offs_c0[None, :], acc, mask=offs_m[:, None] < M)
// CHECK:      OPTIONS = {"num_warps": 8, "enable_fp_fusion": True}

tile.kernel @scale_after(%x: memref<?x64xf32>, %w: memref<8x64xi32>, %scale: memref<2x64xf32>, %zero: memref<2x64xf32>, %y: memref<?x64xf32>) tile<16, 64> attributes {num_warps = 8 : i64} {
  %c0 = arith.constant 0 : index
  %c8 = arith.constant 8 : index
  %c16 = arith.constant 16 : index
  %c32 = arith.constant 32 : index
  %c64 = arith.constant 64 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c16 : index
  %start = tile.full 0.0 : vector<16x64xf32>
  %sum = scf.for %k = %c0 to %c64 step %c32 iter_args(%acc = %start) -> (vector<16x64xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x64xf32> -> vector<16x32xf32>
    %word = arith.divui %k, %c8 : index
    %words = tile.load %w[%word, %c0] : memref<8x64xi32> -> vector<4x64xi32>
    %codes = tile.unpack %words axis = 0 : (vector<4x64xi32>) -> vector<32x64xsi4>
    %q = tile.cast %codes : vector<32x64xsi4> to vector<32x64xf32>
    %g = arith.divui %k, %c32 : index
    %s = tile.load %scale[%g, %c0] : memref<2x64xf32> -> vector<64xf32>
    %z = tile.load %zero[%g, %c0] : memref<2x64xf32> -> vector<1x64xf32>
    %zeros = tile.full 0.0 : vector<16x64xf32>
    %part = tile.dot %zeros, %x_tile, %q : vector<16x32xf32>, vector<32x64xf32> -> vector<16x64xf32>
    %x_sum = tile.sum %x_tile axis = 1 : vector<16x32xf32> to vector<16x1xf32>
    %0 = tile.broadcast %s : vector<64xf32> to vector<16x64xf32>
    %1 = arith.mulf %part, %0 : vector<16x64xf32>
    %2 = tile.broadcast %x_sum : vector<16x1xf32> to vector<16x64xf32>
    %3 = tile.broadcast %z : vector<1x64xf32> to vector<16x64xf32>
    %4 = arith.mulf %2, %3 : vector<16x64xf32>
    %scaled = arith.addf %1, %4 : vector<16x64xf32>
    %next = arith.addf %acc, %scaled : vector<16x64xf32>
    scf.yield %next : vector<16x64xf32>
  }
  tile.store %sum, %y[%m, %c0] : vector<16x64xf32>, memref<?x64xf32>
}
