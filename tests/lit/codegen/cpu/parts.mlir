// RUN: gqc-opt %s -t llvm | filecheck %s

// Four programs have a part of K each; here four columns of x. A program leaves its sums in memory and
// stores no y. The caller's thread adds them in order, after the threads are done, and stores y.

// CHECK:      define void @"f.program"(ptr noalias %".1", ptr noalias %".2", ptr noalias %[[SUMS:".*"]], i64 %{{.*}}, i64 %{{.*}}, i64 %{{.*}}, i64 %[[PART:".*"]])
// CHECK:        %[[PLACE:".*"]] = mul i64 %[[PART]], 4
// CHECK:        store <4 x float> %{{.*}}, ptr %{{.*}}, align 16
// CHECK-NOT:    store
// CHECK:      define void @"f.finish"(ptr noalias %{{.*}}, ptr noalias %[[Y:".*"]], ptr noalias %{{.*}}, i64 %{{.*}}, i64 %{{.*}}, i64 %{{.*}})
// CHECK:        %[[A:".*"]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK:        %[[B:".*"]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK-NEXT:   %[[AB:".*"]] = fadd contract <4 x float> %[[A]], %[[B]]
// CHECK:        %[[C:".*"]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK-NEXT:   %[[ABC:".*"]] = fadd contract <4 x float> %[[AB]], %[[C]]
// CHECK:        %[[D:".*"]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK-NEXT:   %[[ALL:".*"]] = fadd contract <4 x float> %[[ABC]], %[[D]]
// CHECK:        %[[BITS:".*"]] = bitcast <4 x float> %[[ALL]] to <4 x i32>
// CHECK:        call void @"llvm.masked.store.v4i32.p0"(<4 x i32> %[[BITS]], ptr %{{.*}}
// CHECK:      define void @"f.worker"
// CHECK:        %[[COLUMN:".*"]] = udiv i64 %[[TILE:".*"]], 4
// CHECK-NEXT:   %[[WHICH:".*"]] = urem i64 %[[TILE]], 4
// CHECK-NEXT:   call ccc void @"f.program"({{.*}}, i64 %[[COLUMN]], i64 %[[WHICH]])
// CHECK:      define {{.*}}void @"f"(
// CHECK:        call ccc void @"GOMP_parallel"
// CHECK:        call ccc void @"f.finish"
tile.kernel @f(%x: memref<?x16xf32>, %y: memref<?x3xf32>) tile<1, 4> attributes {target = "cpu_portable", num_warps = 1 : i64, num_stages = 1 : i64} {
  %c0 = arith.constant 0 : index
  %c4 = arith.constant 4 : index
  %m = tile.program_id 0
  %pid = tile.program_id 2
  %k = arith.muli %pid, %c4 : index
  %t = tile.load %x[%m, %k] : memref<?x16xf32> -> vector<1x4xf32>
  %s = tile.sum %t axis = 1 : vector<1x4xf32> to vector<1x1xf32>
  %a = tile.broadcast %s : vector<1x1xf32> to vector<1x4xf32>
  %b = tile.add_parts %a parts = 4 : vector<1x4xf32>
  tile.store %b, %y[%m, %c0] : vector<1x4xf32>, memref<?x3xf32>
}
