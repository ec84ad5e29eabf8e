// Stock xdsl-opt reads our dialects, and agrees with gqc-opt.
// RUN: gqc-opt %s | filecheck %s
// RUN: xdsl-opt %s | filecheck %s
// RUN: xdsl-opt --print-op-generic %s | gqc-opt | filecheck %s

// CHECK:       %{{.*}} = gq.weight @fc.weight : tensor<32x64xf32>
// CHECK-NEXT:  %{{.*}} = gq.qcast %{{.*}} by "rtn" "absmax" : tensor<32x64xf32> -> tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>
func.func @forward() -> tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>> {
  %w = gq.weight @fc.weight : tensor<32x64xf32>
  %q = gq.qcast %w by "rtn" "absmax" : tensor<32x64xf32> -> tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>
  func.return %q : tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>
}
