// RUN: gqc-opt %s -t "llvm{isa=avx512vnni}" | filecheck %s
// RUN: gqc-opt %s -t "llvm{isa=avx2}" | filecheck %s --check-prefix AVX2
// RUN: not gqc-opt %s -t triton 2>&1 | filecheck %s --check-prefix TRITON

// Four-bit codes and 8-bit activations: one load is 8 codes of 16 columns, a mask and one shift
// more make two quads of them, and each is multiplied by four bytes of x in every lane.

// CHECK:      define void @"dot.program"
// CHECK:        %[[WORDS:[.\w]+]] = load <16 x i32>, ptr %{{.*}}, align 4
// CHECK:        call void @"llvm.prefetch.p0"
// CHECK-NEXT:   %[[FIRST:[.\w]+]] = and <16 x i32> %[[WORDS]], splat (i32 252645135)
// CHECK:        load <1 x i32>, ptr %{{.*}}, align 1
// CHECK:        call <16 x i32> @"llvm.x86.avx512.vpdpbusd.512"(<16 x i32> splat (i32 -8), <16 x i32> %[[FIRST]], <16 x i32> %{{.*}})
// CHECK-NEXT:   %[[MOVED:[.\w]+]] = lshr <16 x i32> %[[WORDS]], splat (i32 4)
// CHECK-NEXT:   %[[SECOND:[.\w]+]] = and <16 x i32> %[[MOVED]], splat (i32 252645135)
// CHECK:        call <16 x i32> @"llvm.x86.avx512.vpdpbusd.512"(<16 x i32> %{{.*}}, <16 x i32> %[[SECOND]], <16 x i32> %{{.*}})
// CHECK-NEXT:   sitofp <16 x i32>

// AVX2:         %[[PAIRS:[.\w]+]] = call <16 x i16> @"llvm.x86.avx2.pmadd.ub.sw"(<32 x i8> %{{.*}}, <32 x i8> %{{.*}})
// AVX2-NEXT:    %[[QUAD:[.\w]+]] = call <8 x i32> @"llvm.x86.avx2.pmadd.wd"(<16 x i16> %[[PAIRS]], <16 x i16> splat (i16 1))
// AVX2-NEXT:    add <8 x i32> {{.*}}, %[[QUAD]]

// TRITON:     kernel dot: the Triton backend reads no quads
tile.kernel @dot(%a : memref<?x8xi8>, %w : memref<1x16xi32>, %y : memref<?x16xf32>) tile<1, 16> attributes {num_warps = 1 : i64, num_stages = 1 : i64} {
  %c0 = arith.constant 0 : index
  %bytes = tile.load %a[%c0, %c0] : memref<?x8xi8> -> vector<1x8xi8>
  %x = tile.bitcast %bytes : vector<1x8xi8> to vector<1x8xsi8>
  %words = tile.load %w[%c0, %c0] : memref<1x16xi32> -> vector<1x16xi32>
  %q = tile.unpack %words axis = 0 order = "quads" : (vector<1x16xi32>) -> vector<8x16xui4>
  %acc = tile.full -8.0 : vector<1x16xi32>
  %d = tile.dot %acc, %x, %q : vector<1x8xsi8>, vector<8x16xui4> -> vector<1x16xi32>
  %f = tile.cast %d : vector<1x16xi32> to vector<1x16xf32>
  tile.store %f, %y[%c0, %c0] : vector<1x16xf32>, memref<?x16xf32>
}
