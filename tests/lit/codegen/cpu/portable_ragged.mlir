// RUN: gqc-opt %s -t llvm | filecheck %s

// The portable tier: four-lane vectors and no CPU's intrinsics. N = 6 is no multiple of the tile, so
// the bias and the output are masked; rows beyond M read the last row and are not stored. Threads
// have equal runs of the grid, columns outermost.

// CHECK-NOT:  llvm.x86
// CHECK:      define void @"matmul.program"(ptr noalias %{{.*}}, ptr noalias %{{.*}}, ptr noalias %{{.*}}, ptr noalias %{{.*}}, ptr noalias %{{.*}}, i64 %[[M:[.\w]+]], i64 %[[ROW:[.\w]+]], i64 %[[COLUMN:[.\w]+]])
// CHECK:        %[[N:[.\w]+]] = mul i64 %[[COLUMN]], 4
// CHECK:        %[[WORDS:[.\w]+]] = load <4 x i32>
// CHECK:        %[[UP:[.\w]+]] = shl <4 x i32> %[[WORDS]], splat (i32 28)
// CHECK-NEXT:   %[[CODE:[.\w]+]] = ashr <4 x i32> %[[UP]], splat (i32 28)
// CHECK-NEXT:   %[[VALUE:[.\w]+]] = sitofp <4 x i32> %[[CODE]] to <4 x float>
// CHECK-NEXT:   %[[INSIDE:[.\w]+]] = icmp ult i64 %[[ROW]], %[[M]]
// CHECK-NEXT:   %[[LAST:[.\w]+]] = sub i64 %[[M]], 1
// CHECK-NEXT:   select  i1 %[[INSIDE]], i64 %[[ROW]], i64 %[[LAST]]
// CHECK:        call <4 x float> @"llvm.fmuladd.v4f32"(<4 x float> %{{.*}}, <4 x float> %[[VALUE]], <4 x float> {{.*}})
// CHECK-NEXT:   lshr <4 x i32> %[[WORDS]], splat (i32 16)
// CHECK:        %[[LEFT:[.\w]+]] = sub i64 6, %[[N]]
// CHECK:        %[[MASK:[.\w]+]] = icmp slt <4 x i64> <i64 0, i64 1, i64 2, i64 3>, %{{.*}}
// CHECK-NEXT:   call <4 x i32> @"llvm.masked.load.v4i32.p0"(ptr %{{.*}}, i32 4, <4 x i1> %[[MASK]], <4 x i32> {{.*}})
// CHECK:        %[[STORED:[.\w]+]] = icmp ult i64 %[[ROW]], %[[M]]
// CHECK-NEXT:   br i1 %[[STORED]]
// CHECK:        call void @"llvm.masked.store.v4i32.p0"(<4 x i32> %{{.*}}, ptr %{{.*}}, i32 4, <4 x i1> %[[MASK]])

// CHECK:      define void @"matmul.worker"(ptr noalias %{{.*}})
// CHECK:        %[[PROGRAMS:[.\w]+]] = mul i64 %{{.*}}, 2
// CHECK-NEXT:   call i32 @"omp_get_thread_num"()
// CHECK:        call i32 @"omp_get_num_threads"()
// CHECK:        call void @"matmul.program"

// CHECK:      define {{.*}}void @"matmul"(ptr noalias %{{.*}}, ptr noalias %{{.*}}, ptr noalias %{{.*}}, ptr noalias %{{.*}}, ptr noalias %{{.*}}, i64 %{{.*}})
// CHECK:        call void @"GOMP_parallel"({{.*}} @"matmul.worker", ptr %{{.*}}, i32 %{{.*}}, i32 0)

tile.kernel @matmul(%x: memref<?x32xf32>, %w: memref<1x4x64xi32>, %scale: memref<1x1x64xf32>, %bias: memref<6xf32>, %y: memref<?x6xf32>) tile<1, 4> attributes {target = "cpu_portable", num_warps = 1 : i64, num_stages = 1 : i64} {
  %c32 = arith.constant 32 : index
  %c8 = arith.constant 8 : index
  %c0 = arith.constant 0 : index
  %c64 = arith.constant 64 : index
  %c4 = arith.constant 4 : index
  %c1 = arith.constant 1 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c1 : index
  %pid_n = tile.program_id 1
  %n = arith.muli %pid_n, %c4 : index
  %panel = arith.divui %n, %c64 : index
  %lane = arith.remui %n, %c64 : index
  %acc = tile.full 0.000000e+00 : vector<1x4xf32>
  %s = tile.load %scale[%panel, %c0, %lane] : memref<1x1x64xf32> -> vector<1x4xf32>
  %acc_1 = scf.for %k = %c0 to %c32 step %c32 iter_args(%acc_2 = %acc) -> (vector<1x4xf32>) {
    %x_tile = tile.load %x[%m, %k] : memref<?x32xf32> -> vector<1x32xf32>
    %word = arith.divui %k, %c8 : index
    %w_words = tile.load %w[%panel, %word, %lane] : memref<1x4x64xi32> -> vector<4x4xi32>
    %codes = tile.unpack %w_words axis = 0 : (vector<4x4xi32>) -> vector<32x4xsi4>
    %w_tile = tile.cast %codes : vector<32x4xsi4> to vector<32x4xf32>
    %0 = tile.full 0.000000e+00 : vector<1x4xf32>
    %part = tile.dot %0, %x_tile, %w_tile : vector<1x32xf32>, vector<32x4xf32> -> vector<1x4xf32>
    %1 = arith.mulf %part, %s : vector<1x4xf32>
    %2 = arith.addf %acc_2, %1 : vector<1x4xf32>
    scf.yield %2 : vector<1x4xf32>
  }
  %b = tile.load %bias[%n] : memref<6xf32> -> vector<4xf32>
  %3 = tile.broadcast %b : vector<4xf32> to vector<1x4xf32>
  %acc_3 = arith.addf %acc_1, %3 : vector<1x4xf32>
  tile.store %acc_3, %y[%m, %n] : vector<1x4xf32>, memref<?x6xf32>
}
