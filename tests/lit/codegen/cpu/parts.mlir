// RUN: gqc-opt %s -t llvm | filecheck %s

// Four programs have a part of K each; here four columns of x. A program leaves its sums in memory and
// stores no y. The caller's thread adds them in order, after the threads are done, and stores y.

// CHECK:      define void @"f.program"(ptr noalias %x.0, ptr noalias %y.1, ptr noalias %[[SUMS:[.\w]+]], i64 %{{.*}}, i64 %{{.*}}, i64 %{{.*}}, i64 %[[PART:[.\w]+]])
// CHECK:        %[[PLACE:[.\w]+]] = mul i64 %[[PART]], 4
// CHECK:        store <4 x float> %{{.*}}, ptr %{{.*}}, align 16
// CHECK-NOT:    store
// CHECK:      define void @"f.finish"(ptr noalias %{{.*}}, ptr noalias %[[Y:[.\w]+]], ptr noalias %{{.*}}, i64 %{{.*}}, i64 %{{.*}}, i64 %{{.*}})
// CHECK:        %[[A:[.\w]+]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK:        %[[B:[.\w]+]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK-NEXT:   %[[AB:[.\w]+]] = fadd <4 x float> %[[A]], %[[B]]
// CHECK:        %[[C:[.\w]+]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK-NEXT:   %[[ABC:[.\w]+]] = fadd <4 x float> %[[AB]], %[[C]]
// CHECK:        %[[D:[.\w]+]] = load <4 x float>, ptr %{{.*}}, align 16
// CHECK-NEXT:   %[[ALL:[.\w]+]] = fadd <4 x float> %[[ABC]], %[[D]]
// CHECK:        %[[BITS:[.\w]+]] = bitcast <4 x float> %[[ALL]] to <4 x i32>
// CHECK:        call void @"llvm.masked.store.v4i32.p0"(<4 x i32> %[[BITS]], ptr %{{.*}}
// CHECK:      define void @"f.worker"
// CHECK:        %[[COLUMN:[.\w]+]] = udiv i64 %[[TILE:[.\w]+]], 4
// CHECK-NEXT:   %[[WHICH:[.\w]+]] = urem i64 %[[TILE]], 4
// CHECK-NEXT:   call void @"f.program"({{.*}}, i64 %[[COLUMN]], i64 %[[WHICH]])
// CHECK:      define {{.*}}void @"f"(
// CHECK:        call void @"GOMP_parallel"
// CHECK:        call void @"f.finish"
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
