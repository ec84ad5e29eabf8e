// RUN: gqc-opt %s -t "llvm{isa=avx2}" | filecheck %s

// Four-bit floats where a register holds eight: magnitudes are looked up by the lower three bits of
// codes, in whose upper bits the look-up takes no interest, and get the sign.

// CHECK:      define void @"matmul.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <8 x i32>, ptr %{{.*}}, align 4
// CHECK:        %[[VALUE:[.\w]+]] = call <8 x float> @"llvm.x86.avx2.permps"(<8 x float> <float 0.0, float 0.5, float 1.0, float 1.5, float 2.0, float 3.0, float 4.0, float 6.0>, <8 x i32> %[[WORDS]])
// CHECK-NEXT:   %[[TOP:[.\w]+]] = shl <8 x i32> %[[WORDS]], splat (i32 28)
// CHECK-NEXT:   %[[SIGN:[.\w]+]] = and <8 x i32> %[[TOP]], splat (i32 -2147483648)
// CHECK-NEXT:   %[[BITS:[.\w]+]] = bitcast <8 x float> %[[VALUE]] to <8 x i32>
// CHECK-NEXT:   %[[SIGNED:[.\w]+]] = or <8 x i32> %[[BITS]], %[[SIGN]]
// CHECK-NEXT:   bitcast <8 x i32> %[[SIGNED]] to <8 x float>

tile.kernel @matmul(%x: memref<?x64xf32>, %w: memref<1x8x64xi32>, %scale: memref<1x2x64xf8E8M0FNU>, %y: memref<?x64xf32>) tile<1, 32> attributes {target = "cpu_avx2", num_warps = 1 : i64, num_stages = 1 : i64} {
  %c0 = arith.constant 0 : index
  %c8 = arith.constant 8 : index
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
    %x_tile = tile.load %x[%m, %k] : memref<?x64xf32> -> vector<1x32xf32>
    %word = arith.divui %k, %c8 : index
    %w_words = tile.load %w[%panel, %word, %lane] : memref<1x8x64xi32> -> vector<4x32xi32>
    %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<4x32xi32>) -> vector<32x32xf4E2M1FN>
    %g = arith.divui %k, %c32 : index
    %s = tile.load %scale[%panel, %g, %lane] : memref<1x2x64xf8E8M0FNU> -> vector<1x32xf8E8M0FNU>
    %s_1 = tile.cast %s : vector<1x32xf8E8M0FNU> to vector<1x32xf32>
    %w_tile = tile.cast %codes : vector<32x32xf4E2M1FN> to vector<32x32xf32>
    %0 = tile.full 0.000000e+00 : vector<1x32xf32>
    %part = tile.dot %0, %x_tile, %w_tile : vector<1x32xf32>, vector<32x32xf32> -> vector<1x32xf32>
    %1 = arith.mulf %part, %s_1 : vector<1x32xf32>
    %2 = arith.addf %acc_2, %1 : vector<1x32xf32>
    scf.yield %2 : vector<1x32xf32>
  }
  tile.store %acc_1, %y[%m, %n] : vector<1x32xf32>, memref<?x64xf32>
}
