// assign-layouts: each quantized weight is packed as the target's kernels read it. The matmul keeps
// reading the weight, now through gq.unpack; nothing is computed yet.
// RUN: gqc-opt %s -p assign-layouts{target=sm_90} | filecheck %s --check-prefix GPU
// RUN: gqc-opt %s -p assign-layouts{target=cpu_avx2} | filecheck %s --check-prefix CPU

// 100 rows of 128 codes: 16 words of 4 bits a row. A scale and a zero point for each 32 of K, the rows
// side by side.
// GPU:      %q = gq.qcast %w by "rtn" "minmax"
// GPU-NEXT: %packed, %packed_1, %packed_2 = gq.pack %q layout <k_words> : tensor<100x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<100x16xi32>, tensor<4x100xf16>, tensor<4x100xf16>
// GPU-NEXT: %q_1 = gq.unpack %packed, %packed_1, %packed_2 layout <k_words> : tensor<100x16xi32>, tensor<4x100xf16>, tensor<4x100xf16> -> tensor<100x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
// GPU-NEXT: %d = gq.dcast %q_1
// GPU-NEXT: %y = gq.matmul_t %x, %d decision

// The same in panels of 64 rows, a row a lane; the second panel is filled up.
// CPU:      %packed, %packed_1, %packed_2 = gq.pack %q layout <lane_words, lanes = 64> : tensor<100x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<2x16x64xi32>, tensor<2x4x64xf16>, tensor<2x4x64xf16>
// CPU-NEXT: %q_1 = gq.unpack %packed, %packed_1, %packed_2 layout <lane_words, lanes = 64>

// Three bits are a plane of two and a plane of one on a GPU, and so are integer zero points anywhere,
// packed along the rows; on a CPU 32 codes are in three words.
// GPU:      gq.pack %r layout <k_words> : {{.*}} -> tensor<64x8xi32>, tensor<64x4xi32>, tensor<1x64xf16>, tensor<1x4xi32>, tensor<1x2xi32>
// CPU:      gq.pack %r layout <lane_words, lanes = 64> : {{.*}} -> tensor<1x12x64xi32>, tensor<1x1x64xf16>, tensor<1x1x4xi32>, tensor<1x1x2xi32>
func.func @forward(%x : tensor<?x128xbf16>, %u : tensor<?x128xbf16>) -> (tensor<?x100xbf16>, tensor<?x64xbf16>) {
  %w = gq.weight @fc.weight : tensor<100x128xbf16>
  %q = gq.qcast %w by "rtn" "minmax" : tensor<100x128xbf16> -> tensor<100x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %d = gq.dcast %q : tensor<100x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<100x128xbf16>
  %y = gq.matmul_t %x, %d decision <emulated, "why"> : (tensor<?x128xbf16>, tensor<100x128xbf16>) -> tensor<?x100xbf16>
  %v = gq.weight @proj.weight : tensor<64x128xbf16>
  %r = gq.qcast %v by "rtn" "minmax" : tensor<64x128xbf16> -> tensor<64x128x!gq.block_scaled<1x? : f16 : ui3, zero = ui3, zero_mode = quantized>>
  %e = gq.dcast %r : tensor<64x128x!gq.block_scaled<1x? : f16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x128xbf16>
  %z = gq.matmul_t %u, %e decision <emulated, "why"> : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y, %z : tensor<?x100xbf16>, tensor<?x64xbf16>
}
