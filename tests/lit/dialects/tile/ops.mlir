// Every tile operation, in the shape of a kernel: y = x · (q · s + z)ᵀ + bias, with 3-bit codes.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK-LABEL: tile.kernel @matmul(%x: memref<?x128xbf16>, %w2: memref<64x8xi32>, %w1: memref<64x4xi32>, %scale: memref<4x64xf16>, %bias: memref<64xbf16>, %y: memref<?x64xbf16>) tile<16, 64> attributes {target = "sm_90", num_warps = 4 : i64} {
// CHECK-NEXT:    %c0 = arith.constant 0 : index
// CHECK-NEXT:    %c16 = arith.constant 16 : index
// CHECK-NEXT:    %pid_m = tile.program_id 0
// CHECK-NEXT:    %pid_n = tile.program_id 1
// CHECK-NEXT:    %m = arith.muli %pid_m, %c16 : index
// CHECK-NEXT:    %acc = tile.full 0.000000e+00 : vector<16x64xf32>
// CHECK-NEXT:    %x_tile = tile.load %x[%m, %c0] : memref<?x128xbf16> -> vector<16x128xbf16>
// CHECK-NEXT:    %high = tile.load %w2[%c0, %c0] : memref<64x8xi32> -> vector<64x8xi32>
// CHECK-NEXT:    %low = tile.load %w1[%c0, %c0] : memref<64x4xi32> -> vector<64x4xi32>
// CHECK-NEXT:    %q = tile.unpack %high, %low axis = 1 : (vector<64x8xi32>, vector<64x4xi32>) -> vector<64x128xui3>
// CHECK-NEXT:    %qf = tile.cast %q : vector<64x128xui3> to vector<64x128xf32>
// CHECK-NEXT:    %s = tile.load %scale[%c0, %c0] : memref<4x64xf16> -> vector<4x64xf16>
// CHECK-NEXT:    %sf = tile.cast %s : vector<4x64xf16> to vector<4x64xf32>
// CHECK-NEXT:    %st = tile.transpose %sf : vector<4x64xf32> to vector<64x4xf32>
// CHECK-NEXT:    %sr = tile.repeat %st axis = 1 times = 32 : vector<64x4xf32> to vector<64x128xf32>
// CHECK-NEXT:    %ws = arith.mulf %qf, %sr : vector<64x128xf32>
// CHECK-NEXT:    %wb = tile.cast %ws : vector<64x128xf32> to vector<64x128xbf16>
// CHECK-NEXT:    %wt = tile.transpose %wb : vector<64x128xbf16> to vector<128x64xbf16>
// CHECK-NEXT:    %d = tile.dot %acc, %x_tile, %wt : vector<16x128xbf16>, vector<128x64xbf16> -> vector<16x64xf32>
// CHECK-NEXT:    %t = tile.sum %x_tile axis = 1 : vector<16x128xbf16> to vector<16x1xf32>
// CHECK-NEXT:    %g = tile.max %d axis = 1 : vector<16x64xf32> to vector<16x1xf32>
// CHECK-NEXT:    %b = tile.load %bias[%c0] : memref<64xbf16> -> vector<64xbf16>
// CHECK-NEXT:    %bf = tile.cast %b : vector<64xbf16> to vector<64xf32>
// CHECK-NEXT:    %bb = tile.broadcast %bf : vector<64xf32> to vector<16x64xf32>
// CHECK-NEXT:    %o = arith.addf %d, %bb : vector<16x64xf32>
// CHECK-NEXT:    %y_tile = tile.cast %o : vector<16x64xf32> to vector<16x64xbf16>
// CHECK-NEXT:    tile.store %y_tile, %y[%m, %c0] : vector<16x64xbf16>, memref<?x64xbf16>
// CHECK-NEXT:  }

// GENERIC:       "tile.kernel"() <{sym_name = "matmul", tile = array<i64: 16, 64>}> ({
// GENERIC-NEXT:  ^bb0(%x: memref<?x128xbf16>, %w2: memref<64x8xi32>, %w1: memref<64x4xi32>, %scale: memref<4x64xf16>, %bias: memref<64xbf16>, %y: memref<?x64xbf16>):
// GENERIC:         %pid_m = "tile.program_id"() <{axis = 0 : i64}> : () -> index
// GENERIC:         %acc = "tile.full"() <{value = 0.000000e+00 : f32}> : () -> vector<16x64xf32>
// GENERIC-NEXT:    %x_tile = "tile.load"(%x, %m, %c0) : (memref<?x128xbf16>, index, index) -> vector<16x128xbf16>
// GENERIC:         %q = "tile.unpack"(%high, %low) <{axis = 1 : i64}> : (vector<64x8xi32>, vector<64x4xi32>) -> vector<64x128xui3>
// GENERIC-NEXT:    %qf = "tile.cast"(%q) : (vector<64x128xui3>) -> vector<64x128xf32>
// GENERIC:         %st = "tile.transpose"(%sf) : (vector<4x64xf32>) -> vector<64x4xf32>
// GENERIC-NEXT:    %sr = "tile.repeat"(%st) <{axis = 1 : i64, times = 32 : i64}> : (vector<64x4xf32>) -> vector<64x128xf32>
// GENERIC:         %d = "tile.dot"(%acc, %x_tile, %wt) : (vector<16x64xf32>, vector<16x128xbf16>, vector<128x64xbf16>) -> vector<16x64xf32>
// GENERIC-NEXT:    %t = "tile.sum"(%x_tile) <{axis = 1 : i64}> : (vector<16x128xbf16>) -> vector<16x1xf32>
// GENERIC:         %bb = "tile.broadcast"(%bf) : (vector<64xf32>) -> vector<16x64xf32>
// GENERIC:         "tile.store"(%y_tile, %y, %m, %c0) : (vector<16x64xbf16>, memref<?x64xbf16>, index, index) -> ()
// GENERIC-NEXT:  }) {target = "sm_90", num_warps = 4 : i64} : () -> ()
tile.kernel @matmul(%x : memref<?x128xbf16>, %w2 : memref<64x8xi32>, %w1 : memref<64x4xi32>, %scale : memref<4x64xf16>, %bias : memref<64xbf16>, %y : memref<?x64xbf16>) tile<16, 64> attributes {target = "sm_90", num_warps = 4 : i64} {
  %c0 = arith.constant 0 : index
  %c16 = arith.constant 16 : index
  %pid_m = tile.program_id 0
  %pid_n = tile.program_id 1
  %m = arith.muli %pid_m, %c16 : index
  %acc = tile.full 0.0 : vector<16x64xf32>
  %x_tile = tile.load %x[%m, %c0] : memref<?x128xbf16> -> vector<16x128xbf16>
  %high = tile.load %w2[%c0, %c0] : memref<64x8xi32> -> vector<64x8xi32>
  %low = tile.load %w1[%c0, %c0] : memref<64x4xi32> -> vector<64x4xi32>
  %q = tile.unpack %high, %low axis = 1 : (vector<64x8xi32>, vector<64x4xi32>) -> vector<64x128xui3>
  %qf = tile.cast %q : vector<64x128xui3> to vector<64x128xf32>
  %s = tile.load %scale[%c0, %c0] : memref<4x64xf16> -> vector<4x64xf16>
  %sf = tile.cast %s : vector<4x64xf16> to vector<4x64xf32>
  %st = tile.transpose %sf : vector<4x64xf32> to vector<64x4xf32>
  %sr = tile.repeat %st axis = 1 times = 32 : vector<64x4xf32> to vector<64x128xf32>
  %ws = arith.mulf %qf, %sr : vector<64x128xf32>
  %wb = tile.cast %ws : vector<64x128xf32> to vector<64x128xbf16>
  %wt = tile.transpose %wb : vector<64x128xbf16> to vector<128x64xbf16>
  %d = tile.dot %acc, %x_tile, %wt : vector<16x128xbf16>, vector<128x64xbf16> -> vector<16x64xf32>
  %t = tile.sum %x_tile axis = 1 : vector<16x128xbf16> to vector<16x1xf32>
  %g = tile.max %d axis = 1 : vector<16x64xf32> to vector<16x1xf32>
  %b = tile.load %bias[%c0] : memref<64xbf16> -> vector<64xbf16>
  %bf = tile.cast %b : vector<64xbf16> to vector<64xf32>
  %bb = tile.broadcast %bf : vector<64xf32> to vector<16x64xf32>
  %o = arith.addf %d, %bb : vector<16x64xf32>
  %y_tile = tile.cast %o : vector<16x64xf32> to vector<16x64xbf16>
  tile.store %y_tile, %y[%m, %c0] : vector<16x64xbf16>, memref<?x64xbf16>
}

// A CPU's arrays have a dimension more; a tile of lower rank is read at one place of the first.
// CHECK-LABEL: tile.kernel @panels
// CHECK:         %words = tile.load %w[%c0, %c0, %c0] : memref<2x16x64xi32> -> vector<4x64xi32>
// CHECK-NEXT:    %q = tile.unpack %words axis = 0 : (vector<4x64xi32>) -> vector<32x64xsi4>
// CHECK-NEXT:    %v = tile.cast %q : vector<32x64xsi4> to vector<32x64xf32>
// CHECK-NEXT:    tile.store %v, %y[%c0, %c0] : vector<32x64xf32>, memref<?x64xf32>
tile.kernel @panels(%w : memref<2x16x64xi32>, %y : memref<?x64xf32>) tile<32, 64> {
  %c0 = arith.constant 0 : index
  %words = tile.load %w[%c0, %c0, %c0] : memref<2x16x64xi32> -> vector<4x64xi32>
  %q = tile.unpack %words axis = 0 : (vector<4x64xi32>) -> vector<32x64xsi4>
  %v = tile.cast %q : vector<32x64xsi4> to vector<32x64xf32>
  tile.store %v, %y[%c0, %c0] : vector<32x64xf32>, memref<?x64xf32>
}

// Integer codes are summed and multiplied in i32, words of quads unpacked in their order.
// CHECK-LABEL: tile.kernel @integers
// CHECK:         %q = tile.unpack %words axis = 0 order = "quads" : (vector<4x16xi32>) -> vector<32x16xui4>
// CHECK:         %t = tile.sum %x axis = 1 : vector<4x32xsi8> to vector<4x1xi32>
// CHECK:         %acc = tile.full -8.000000e+00 : vector<4x16xi32>
// CHECK-NEXT:    %d = tile.dot %acc, %x, %q : vector<4x32xsi8>, vector<32x16xui4> -> vector<4x16xi32>
tile.kernel @integers(%a : memref<?x32xi8>, %w : memref<4x16xi32>, %y : memref<?x16xf32>) tile<4, 16> {
  %c0 = arith.constant 0 : index
  %bytes = tile.load %a[%c0, %c0] : memref<?x32xi8> -> vector<4x32xi8>
  %x = tile.bitcast %bytes : vector<4x32xi8> to vector<4x32xsi8>
  %words = tile.load %w[%c0, %c0] : memref<4x16xi32> -> vector<4x16xi32>
  %q = tile.unpack %words axis = 0 order = "quads" : (vector<4x16xi32>) -> vector<32x16xui4>
  %t = tile.sum %x axis = 1 : vector<4x32xsi8> to vector<4x1xi32>
  %acc = tile.full -8.0 : vector<4x16xi32>
  %d = tile.dot %acc, %x, %q : vector<4x32xsi8>, vector<32x16xui4> -> vector<4x16xi32>
  %f = tile.cast %d : vector<4x16xi32> to vector<4x16xf32>
  tile.store %f, %y[%c0, %c0] : vector<4x16xf32>, memref<?x16xf32>
}
