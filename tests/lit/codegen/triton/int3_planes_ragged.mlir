// RUN: gqc-opt %s -t triton | filecheck %s

// 3-bit codes in two planes, packed integer zero points, a bias, and a mask on every dimension that
// is no multiple of the tile: N = 100 and K = 72.

// CHECK:      def matmul(x, w2, w1, scale, zero2, zero1, bias, y, M):
// CHECK:          n = tl.program_id(1) * 32
// CHECK-NEXT:     offs_n = n + tl.arange(0, 32)
// CHECK-NEXT:     s = tl.load(scale + offs_n[None, :], mask=offs_n[None, :] < 100, other=0)
// CHECK-NEXT:     st = tl.trans(s.to(tl.float32))
// CHECK-NEXT:     offs_n2 = n // 16 + tl.arange(0, 2)
// CHECK-NEXT:     z2 = tl.load(zero2 + offs_n2[None, :], mask=offs_n2[None, :] < 7, other=0)
// CHECK-NEXT:     offs_n1 = n // 32 + tl.arange(0, 1)
// CHECK-NEXT:     z1 = tl.load(zero1 + offs_n1[None, :])
// CHECK-NEXT:     z = split_pairs(unpack_pairs(z2, 2) | unpack_pairs(z1, 1) << 2)
// CHECK:          for k in range(0, 72, 64):
// CHECK:                  mask=(offs_m[:, None] < M) & (offs_k[None, :] < 72),
// CHECK:                  mask=(offs_n[:, None] < 100) & (offs_k2[None, :] < 5),
// CHECK:                  mask=(offs_n[:, None] < 100) & (offs_k1[None, :] < 3),
// CHECK:              codes = split_pairs(unpack_pairs(p2, 2) | unpack_pairs(p1, 1) << 2)
// CHECK-NEXT:         w_tile = (codes.to(tl.float32) - zt) * st
// CHECK:          b = tl.load(bias + offs_n, mask=offs_n < 100, other=0)
// CHECK-NEXT:     total = tl.trans(acc) + b.to(tl.float32)[None, :]
// CHECK:              mask=(offs_m[:, None] < M) & (offs_n[None, :] < 100),

tile.kernel @matmul(%x: memref<?x72xbf16>, %w2: memref<100x5xi32>, %w1: memref<100x3xi32>, %scale: memref<1x100xf16>, %zero2: memref<1x7xi32>, %zero1: memref<1x4xi32>, %bias: memref<100xbf16>, %y: memref<?x100xbf16>) tile<16, 32> {
  %c0 = arith.constant 0 : index
  %c16 = arith.constant 16 : index
  %c32 = arith.constant 32 : index
  %c64 = arith.constant 64 : index
  %c72 = arith.constant 72 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c16 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c32 : index
  %s = tile.load %scale[%c0, %n] : memref<1x100xf16> -> vector<1x32xf16>
  %s32 = tile.cast %s : vector<1x32xf16> to vector<1x32xf32>
  %st = tile.transpose %s32 : vector<1x32xf32> to vector<32x1xf32>
  %n2 = arith.divui %n, %c16 : index
  %z2 = tile.load %zero2[%c0, %n2] : memref<1x7xi32> -> vector<1x2xi32>
  %n1 = arith.divui %n, %c32 : index
  %z1 = tile.load %zero1[%c0, %n1] : memref<1x4xi32> -> vector<1x1xi32>
  %z = tile.unpack %z2, %z1 axis = 1 : (vector<1x2xi32>, vector<1x1xi32>) -> vector<1x32xui3>
  %z32 = tile.cast %z : vector<1x32xui3> to vector<1x32xf32>
  %zt = tile.transpose %z32 : vector<1x32xf32> to vector<32x1xf32>
  %start = tile.full 0.0 : vector<32x16xf32>
  %sum = scf.for %k = %c0 to %c72 step %c64 iter_args(%acc = %start) -> (vector<32x16xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x72xbf16> -> vector<16x64xbf16>
    %k2 = arith.divui %k, %c16 : index
    %p2 = tile.load %w2[%n, %k2] : memref<100x5xi32> -> vector<32x4xi32>
    %k1 = arith.divui %k, %c32 : index
    %p1 = tile.load %w1[%n, %k1] : memref<100x3xi32> -> vector<32x2xi32>
    %codes = tile.unpack %p2, %p1 axis = 1 : (vector<32x4xi32>, vector<32x2xi32>) -> vector<32x64xui3>
    %q = tile.cast %codes : vector<32x64xui3> to vector<32x64xf32>
    %0 = tile.repeat %st axis = 1 times = 64 : vector<32x1xf32> to vector<32x64xf32>
    %1 = tile.repeat %zt axis = 1 times = 64 : vector<32x1xf32> to vector<32x64xf32>
    %2 = arith.subf %q, %1 : vector<32x64xf32>
    %w_tile = arith.mulf %2, %0 : vector<32x64xf32>
    %w16 = tile.cast %w_tile : vector<32x64xf32> to vector<32x64xbf16>
    %xt = tile.transpose %x_tile : vector<16x64xbf16> to vector<64x16xbf16>
    %next = tile.dot %acc, %w16, %xt : vector<32x64xbf16>, vector<64x16xbf16> -> vector<32x16xf32>
    scf.yield %next : vector<32x16xf32>
  }
  %t = tile.transpose %sum : vector<32x16xf32> to vector<16x32xf32>
  %b = tile.load %bias[%n] : memref<100xbf16> -> vector<32xbf16>
  %b32 = tile.cast %b : vector<32xbf16> to vector<32xf32>
  %3 = tile.broadcast %b32 : vector<32xf32> to vector<16x32xf32>
  %total = arith.addf %t, %3 : vector<16x32xf32>
  %y_tile = tile.cast %total : vector<16x32xf32> to vector<16x32xbf16>
  tile.store %y_tile, %y[%m, %n] : vector<16x32xbf16>, memref<?x100xbf16>
}
