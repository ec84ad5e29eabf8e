// A layer that was packed for one target cannot be lowered for another, nor printed for its backend;
// nor can it be read by tiles of more columns than its layout has side by side.
// RUN: not gqc-opt %s -p 'legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=sm_90}' 2>&1 | filecheck %s --check-prefix LAYOUT
// RUN: not gqc-opt %s -p 'legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' -t triton 2>&1 | filecheck %s --check-prefix BACKEND
// RUN: gqc-opt %s -p 'legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2}' | sed 's/tile = 1x32x32/tile = 1x128x32/' > %t.mlir
// RUN: not gqc-opt %t.mlir -p 'lower-to-tile{target=cpu_avx2}' 2>&1 | filecheck %s --check-prefix WIDE

// LAYOUT:      kernels of sm_90 read #gq.layout<k_words>, which 1 layer cannot give:
// LAYOUT-NEXT:   fc: #gq.layout<lane_words, lanes = 64>
// LAYOUT-NEXT: run legalize and what follows it for one target
// WIDE:        a tile's columns have to divide the lanes of its weight's layout, which 1 tile cannot:
// WIDE-NEXT:     fc: 128 columns of 64 lanes
// WIDE-NEXT:   choose another tile
// BACKEND:     is tiled for cpu_avx2, not for triton
func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x32xbf16> {
  %w = gq.weight @fc.weight : tensor<32x64xbf16>
  %q = gq.qcast %w by "rtn" "no_clip" : tensor<32x64xbf16> -> tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>
  %y = gq.matmul_t %x, %q : (tensor<?x64xbf16>, tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x32xbf16>
  func.return %y : tensor<?x32xbf16>
}
