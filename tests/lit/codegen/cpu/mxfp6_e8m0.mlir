// RUN: gqc-opt %s -t "llvm{isa=avx2}" | filecheck %s

// Six-bit floats, 16 in three words, under E8M0 scales. A code wider than the look-up is decoded by
// moving its fields to their places in f32 and its exponent to f32's bias; a subnormal, y, is then
// 2y − 1, which of normal numbers is not less than y. The last four codes are put together of what
// is left of two words. A scale is one byte, the exponent of an f32; its ends, 0 and 255, get the
// bit that makes them 2^-127 and NaN.

// CHECK:      define void @"matmul.program"
// CHECK:        %[[FIRST:[.\w]+]] = load <8 x i32>, ptr %{{.*}}, align 4
// CHECK:        %[[MOVED:[.\w]+]] = shl <8 x i32> %[[FIRST]], splat (i32 20)
// CHECK-NEXT:   %[[FIELDS:[.\w]+]] = and <8 x i32> %[[MOVED]], splat (i32 32505856)
// CHECK-NEXT:   %[[BITS:[.\w]+]] = add <8 x i32> %[[FIELDS]], splat (i32 1056964608)
// CHECK-NEXT:   %[[Y:[.\w]+]] = bitcast <8 x i32> %[[BITS]] to <8 x float>
// CHECK-NEXT:   %[[LESS:[.\w]+]] = call <8 x float> @"llvm.fma.v8f32"(<8 x float> %[[Y]], <8 x float> splat (float 2.0), <8 x float> splat (float -1.0))
// CHECK-NEXT:   %[[LESS_BITS:[.\w]+]] = bitcast <8 x float> %[[LESS]] to <8 x i32>
// CHECK-NEXT:   %[[MAGNITUDE:[.\w]+]] = call <8 x i32> @"llvm.umin.v8i32"(<8 x i32> %[[BITS]], <8 x i32> %[[LESS_BITS]])
// CHECK:        %[[TOP:[.\w]+]] = shl <8 x i32> %[[FIRST]], splat (i32 26)
// CHECK-NEXT:   %[[SIGN:[.\w]+]] = and <8 x i32> %[[TOP]], splat (i32 -2147483648)
// CHECK-NEXT:   or <8 x i32> %[[MAGNITUDE]], %[[SIGN]]
// CHECK:        call <8 x float> @"llvm.fma.v8f32"
// CHECK:        %[[FOUR:[.\w]+]] = lshr <8 x i32> %[[FIRST]], splat (i32 12)
// CHECK:        %[[TWO:[.\w]+]] = lshr <8 x i32> %{{.*}}, splat (i32 8)
// CHECK:        %[[LOW:[.\w]+]] = and <8 x i32> %[[FOUR]], splat (i32 15)
// CHECK-NEXT:   %[[HIGH:[.\w]+]] = and <8 x i32> %[[TWO]], splat (i32 -16)
// CHECK-NEXT:   %[[CODE:[.\w]+]] = or <8 x i32> %[[LOW]], %[[HIGH]]
// CHECK:        shl <8 x i32> %[[CODE]], splat (i32 20)
// CHECK:        %[[SCALES:[.\w]+]] = getelementptr i8, ptr %scale.{{[0-9]+}}
// CHECK-NEXT:   %[[BYTES:[.\w]+]] = load <8 x i8>, ptr %[[SCALES]], align 1
// CHECK:        %[[EXPONENT:[.\w]+]] = zext <8 x i8> %{{.*}} to <8 x i32>
// CHECK-NEXT:   %[[SHIFTED:[.\w]+]] = shl <8 x i32> %[[EXPONENT]], splat (i32 23)
// CHECK-NEXT:   %[[BITS:[.\w]+]] = call <8 x i32> @"llvm.smax.v8i32"(<8 x i32> %[[SHIFTED]], <8 x i32> splat (i32 4194304))
// CHECK-NEXT:   %[[POWER:[.\w]+]] = bitcast <8 x i32> %[[BITS]] to <8 x float>
// CHECK-NEXT:   %[[SCALE:[.\w]+]] = call <8 x float> @"llvm.fma.v8f32"(<8 x float> %[[POWER]], <8 x float> splat (float 0.0), <8 x float> %[[POWER]])
// CHECK:        call <8 x float> @"llvm.fma.v8f32"(<8 x float> %{{.*}}, <8 x float> %[[SCALE]], <8 x float> %{{.*}})

tile.kernel @matmul(%x: memref<?x64xf32>, %w: memref<1x12x64xi32>, %scale: memref<1x2x64xf8E8M0FNU>, %y: memref<?x64xf32>) tile<1, 32> attributes {target = "cpu_avx2", num_warps = 1 : i64, num_stages = 1 : i64} {
  %c0 = arith.constant 0 : index
  %c16 = arith.constant 16 : index
  %c3 = arith.constant 3 : index
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
    %group = arith.divui %k, %c16 : index
    %word = arith.muli %group, %c3 : index
    %w_words = tile.load %w[%panel, %word, %lane] : memref<1x12x64xi32> -> vector<6x32xi32>
    %codes = tile.unpack %w_words axis = 0 order = "halves" : (vector<6x32xi32>) -> vector<32x32xf6E2M3FN>
    %g = arith.divui %k, %c32 : index
    %s = tile.load %scale[%panel, %g, %lane] : memref<1x2x64xf8E8M0FNU> -> vector<1x32xf8E8M0FNU>
    %s_1 = tile.cast %s : vector<1x32xf8E8M0FNU> to vector<1x32xf32>
    %w_tile = tile.cast %codes : vector<32x32xf6E2M3FN> to vector<32x32xf32>
    %0 = tile.full 0.000000e+00 : vector<1x32xf32>
    %part = tile.dot %0, %x_tile, %w_tile : vector<1x32xf32>, vector<32x32xf32> -> vector<1x32xf32>
    %1 = arith.mulf %part, %s_1 : vector<1x32xf32>
    %2 = arith.addf %acc_2, %1 : vector<1x32xf32>
    scf.yield %2 : vector<1x32xf32>
  }
  tile.store %acc_1, %y[%m, %n] : vector<1x32xf32>, memref<?x64xf32>
}
