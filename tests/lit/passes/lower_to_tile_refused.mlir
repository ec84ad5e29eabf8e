// A layer that was packed for one target cannot be lowered for another, nor printed for its backend;
// nor can it be read by tiles that do not fit its layout and its groups.
// RUN: not gqc-opt %s -p 'legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=sm_90}' 2>&1 | filecheck %s --check-prefix LAYOUT
// RUN: not gqc-opt %s -p 'legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' -t triton 2>&1 | filecheck %s --check-prefix BACKEND
// RUN: gqc-opt %s -p 'legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2}' | sed 's/tile = 1x32x32/tile = 1x128x32/; s/tile = 2x32x32/tile = 2x32x16/; s/tile = 4x16x32, scale = after/tile = 4x16x24, scale = before/' > %t.mlir
// RUN: not gqc-opt %t.mlir -p 'lower-to-tile{target=cpu_avx2}' 2>&1 | filecheck %s --check-prefix TILES
// RUN: not gqc-opt %s -p 'legalize{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2}' 2>&1 | filecheck %s --check-prefix UNPACKED

// LAYOUT:      kernels of sm_90 read #gq.layout<k_words>, which 1 layer cannot give:
// LAYOUT-NEXT:   fc: #gq.layout<lane_words, lanes = 64>
// LAYOUT-NEXT: run legalize and what follows it for one target
// TILES:       no kernel can be made of these tiles:
// TILES-NEXT:    fc: 128 columns do not divide the 64 lanes of a panel
// TILES-NEXT:    fc: a step of 16 is scaled after it, but groups are of 32
// TILES-NEXT:    fc: a step of 24 is neither in a group of 32 nor whole groups
// TILES-NEXT:  choose others
// UNPACKED:    fc: its weight is not packed: run assign-layouts first
// BACKEND:     is tiled for cpu_avx2, not for triton
func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x32xbf16> {
  %w = gq.weight @fc.weight : tensor<32x64xbf16>
  %q = gq.qcast %w by "rtn" "no_clip" : tensor<32x64xbf16> -> tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>
  %y = gq.matmul_t %x, %q : (tensor<?x64xbf16>, tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x32xbf16>
  func.return %y : tensor<?x32xbf16>
}
