// RUN: gqc-opt %s -t "llvm{isa=avx512bf16}" | filecheck %s

// Four-bit codes and bf16 activations: one load is 8 codes of 16 columns; a pair of codes costs one
// shift and one look-up (which ignores the index's high bits, so nothing is masked), and feeds the
// dot of bf16 pairs of every row. The scale comes after the dot, the zero point by the sum of x.
// y is rounded by integer arithmetic: the instruction would make its subnormals zeros.

// CHECK:      define void @"matmul.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <16 x i32>, ptr %{{.*}}, align 4
// CHECK:        call void @"llvm.prefetch.p0"
// CHECK-NEXT:   %[[BITS:[.\w]+]] = bitcast <16 x i32> %[[WORDS]] to <32 x i16>
// CHECK-NEXT:   %[[CODES:[.\w]+]] = call <32 x i16> @"llvm.x86.avx512.permvar.hi.512"(<32 x i16> <i16 0, i16 16256, i16 16384, {{.*}}>, <32 x i16> %[[BITS]])
// CHECK:        %[[PAIR:[.\w]+]] = bitcast <32 x i16> %[[CODES]] to <32 x bfloat>
// CHECK:        load <1 x i32>, ptr %{{.*}}, align 2
// CHECK:        call <16 x float> @"llvm.x86.avx512bf16.dpbf16ps.512"(<16 x float> {{.*}}, <32 x bfloat> %{{.*}}, <32 x bfloat> %[[PAIR]])
// CHECK:        call <16 x float> @"llvm.x86.avx512bf16.dpbf16ps.512"(<16 x float> {{.*}}, <32 x bfloat> %{{.*}}, <32 x bfloat> %[[PAIR]])
// CHECK-NEXT:   lshr <16 x i32> %[[WORDS]], splat (i32 4)
// CHECK:        fpext <16 x half>
// CHECK:        call <16 x float> @"llvm.fma.v16f32"
// CHECK:        add <16 x i32> %{{.*}}, splat (i32 32767)
// CHECK:        trunc <16 x i32> %{{.*}} to <16 x i16>
// CHECK:        store <16 x bfloat>

tile.kernel @matmul(%x: memref<?x64xbf16>, %w: memref<1x8x64xi32>, %scale: memref<1x1x64xf16>, %zero: memref<1x1x64xf16>, %y: memref<?x64xbf16>) tile<2, 16> attributes {target = "cpu_avx512bf16", num_warps = 1 : i64, num_stages = 1 : i64} {
  %c8 = arith.constant 8 : index
  %c0 = arith.constant 0 : index
  %c64 = arith.constant 64 : index
  %c16 = arith.constant 16 : index
  %c2 = arith.constant 2 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c2 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c16 : index
  %panel = arith.divui %n, %c64 : index
  %lane = arith.remui %n, %c64 : index
  %acc = tile.full 0.000000e+00 : vector<2x16xf32>
  %s = tile.load %scale[%panel, %c0, %lane] : memref<1x1x64xf16> -> vector<1x16xf16>
  %s_1 = tile.cast %s : vector<1x16xf16> to vector<1x16xf32>
  %z = tile.load %zero[%panel, %c0, %lane] : memref<1x1x64xf16> -> vector<1x16xf16>
  %z_1 = tile.cast %z : vector<1x16xf16> to vector<1x16xf32>
  %acc_1 = scf.for %k = %c0 to %c64 step %c64 iter_args(%acc_2 = %acc) -> (vector<2x16xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x64xbf16> -> vector<2x64xbf16>
    %word = arith.divui %k, %c8 : index
    %w_words = tile.load %w[%panel, %word, %lane] : memref<1x8x64xi32> -> vector<8x16xi32>
    %codes = tile.unpack %w_words axis = 0 : (vector<8x16xi32>) -> vector<64x16xui4>
    %w_tile = tile.cast %codes : vector<64x16xui4> to vector<64x16xbf16>
    %0 = tile.full 0.000000e+00 : vector<2x16xf32>
    %part = tile.dot %0, %x_tile, %w_tile : vector<2x64xbf16>, vector<64x16xbf16> -> vector<2x16xf32>
    %1 = tile.broadcast %s_1 : vector<1x16xf32> to vector<2x16xf32>
    %2 = arith.mulf %part, %1 : vector<2x16xf32>
    %3 = arith.addf %acc_2, %2 : vector<2x16xf32>
    %x_sum = tile.sum %x_tile axis = 1 : vector<2x64xbf16> to vector<2x1xf32>
    %4 = tile.broadcast %x_sum : vector<2x1xf32> to vector<2x16xf32>
    %5 = tile.broadcast %z_1 : vector<1x16xf32> to vector<2x16xf32>
    %6 = arith.mulf %4, %5 : vector<2x16xf32>
    %7 = arith.addf %3, %6 : vector<2x16xf32>
    scf.yield %7 : vector<2x16xf32>
  }
  %y_tile = tile.cast %acc_1 : vector<2x16xf32> to vector<2x16xbf16>
  tile.store %y_tile, %y[%m, %n] : vector<2x16xbf16>, memref<?x64xbf16>
}
