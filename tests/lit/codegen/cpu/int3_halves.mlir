// RUN: gqc-opt %s -t "llvm{isa=avx2}" | filecheck %s

// Three-bit codes, 32 in three words, bf16 activations without bf16 instructions. A look-up in eight
// lanes decodes a code, and ignores what is above it; the last two codes are put together of a bit of
// each word. Zero points, in two planes, packed along the lanes: each lane picks its word and shifts
// it.

// CHECK:      define void @"matmul.program"
// CHECK:        %[[FIRST:[.\w]+]] = load <8 x i32>
// CHECK:        call <8 x float> @"llvm.x86.avx2.permps"(<8 x float> <float {{.*}}>, <8 x i32> %[[FIRST]])
// CHECK:        %[[NEXT:[.\w]+]] = lshr <8 x i32> %[[FIRST]], splat (i32 16)
// CHECK:        call <8 x float> @"llvm.x86.avx2.permps"(<8 x float> <float {{.*}}>, <8 x i32> %[[NEXT]])
// CHECK:        %[[LOW:[.\w]+]] = lshr <8 x i32> %[[FIRST]], splat (i32 15)
// CHECK:        %[[MIDDLE:[.\w]+]] = lshr <8 x i32> %{{.*}}, splat (i32 14)
// CHECK:        %[[ONE:[.\w]+]] = and <8 x i32> %[[LOW]], splat (i32 1)
// CHECK-NEXT:   %[[ABOVE:[.\w]+]] = and <8 x i32> %[[MIDDLE]], splat (i32 -2)
// CHECK-NEXT:   %[[TWO:[.\w]+]] = or <8 x i32> %[[ONE]], %[[ABOVE]]
// CHECK:        lshr <8 x i32> %{{.*}}, splat (i32 13)
// CHECK:        and <8 x i32> %[[TWO]], splat (i32 3)
// CHECK:        %[[CODE:[.\w]+]] = or <8 x i32>
// CHECK:        call <8 x float> @"llvm.x86.avx2.permps"(<8 x float> <float {{.*}}>, <8 x i32> %[[CODE]])
// CHECK:        load <1 x i32>, ptr %{{.*}}, align 2
// CHECK:        shl <8 x i32> %{{.*}}, splat (i32 16)
// CHECK:        call <8 x float> @"llvm.fma.v8f32"
// CHECK:        load <2 x i32>, ptr %{{.*}}, align 4
// CHECK-NEXT:   shufflevector <2 x i32> %{{.*}}, <2 x i32> %{{.*}}, <8 x i32> splat (i32 0)
// CHECK-NEXT:   lshr <8 x i32> %{{.*}}, <i32 0, i32 16, i32 2, i32 18, i32 4, i32 20, i32 6, i32 22>

tile.kernel @matmul(%x: memref<?x64xbf16>, %w: memref<1x6x64xi32>, %scale: memref<1x2x64xf16>, %zero2: memref<1x2x4xi32>, %zero1: memref<1x2x2xi32>, %y: memref<?x64xbf16>) tile<1, 32> attributes {target = "cpu_avx2", num_warps = 1 : i64, num_stages = 1 : i64} {
  %c0 = arith.constant 0 : index
  %c3 = arith.constant 3 : index
  %c16 = arith.constant 16 : index
  %c64 = arith.constant 64 : index
  %c32 = arith.constant 32 : index
  %c1 = arith.constant 1 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c1 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c32 : index
  %panel = arith.divui %n, %c64 : index
  %lane = arith.remui %n, %c64 : index
  %acc = tile.full 0.000000e+00 : vector<1x32xf32>
  %acc_1 = scf.for %k = %c0 to %c64 step %c32 iter_args(%acc_2 = %acc) -> (vector<1x32xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x64xbf16> -> vector<1x32xbf16>
    %group = arith.divui %k, %c32 : index
    %word = arith.muli %group, %c3 : index
    %w_words = tile.load %w[%panel, %word, %lane] : memref<1x6x64xi32> -> vector<3x32xi32>
    %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<3x32xi32>) -> vector<32x32xui3>
    %g = arith.divui %k, %c32 : index
    %s = tile.load %scale[%panel, %g, %lane] : memref<1x2x64xf16> -> vector<1x32xf16>
    %s_1 = tile.cast %s : vector<1x32xf16> to vector<1x32xf32>
    %lane_word = arith.divui %lane, %c16 : index
    %zero2_words = tile.load %zero2[%panel, %g, %lane_word] : memref<1x2x4xi32> -> vector<1x2xi32>
    %lane_word_1 = arith.divui %lane, %c32 : index
    %zero1_words = tile.load %zero1[%panel, %g, %lane_word_1] : memref<1x2x2xi32> -> vector<1x1xi32>
    %0 = tile.unpack %zero2_words, %zero1_words axis = 1 : (vector<1x2xi32>, vector<1x1xi32>) -> vector<1x32xui3>
    %z = tile.cast %0 : vector<1x32xui3> to vector<1x32xf32>
    %w_tile = tile.cast %codes : vector<32x32xui3> to vector<32x32xbf16>
    %1 = tile.full 0.000000e+00 : vector<1x32xf32>
    %part = tile.dot %1, %x_tile, %w_tile : vector<1x32xbf16>, vector<32x32xbf16> -> vector<1x32xf32>
    %2 = arith.mulf %part, %s_1 : vector<1x32xf32>
    %3 = arith.addf %acc_2, %2 : vector<1x32xf32>
    %x_sum = tile.sum %x_tile axis = 1 : vector<1x32xbf16> to vector<1x1xf32>
    %4 = tile.broadcast %x_sum : vector<1x1xf32> to vector<1x32xf32>
    %offset = arith.mulf %s_1, %z : vector<1x32xf32>
    %5 = arith.mulf %4, %offset : vector<1x32xf32>
    %6 = arith.subf %3, %5 : vector<1x32xf32>
    scf.yield %6 : vector<1x32xf32>
  }
  %y_tile = tile.cast %acc_1 : vector<1x32xf32> to vector<1x32xbf16>
  tile.store %y_tile, %y[%m, %n] : vector<1x32xbf16>, memref<?x64xbf16>
}
