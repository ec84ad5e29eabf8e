// One linear layer all the way: torch's call, NVFP4 operands, their layout, a kernel that hands codes
// and scales to the matrix unit, and the instruction that takes them.
//
// DEFINE: %{grouped} = recognize-linears,quantize-weights{schemes="*=nvfp4"},quantize-activations{schemes="*=nvfp4"}
// DEFINE: %{legal} = legalize{target=sm_100},assign-layouts{target=sm_100},split-m-buckets{target=sm_100}
// DEFINE: %{kernels} = lower-quantizers{target=sm_100},lower-to-tile{target=sm_100},fold-weights
// RUN: gqc-opt %s -p '%{grouped}' | filecheck %s --check-prefix GROUPED
// RUN: gqc-opt %s -p '%{grouped},%{legal}' | filecheck %s --check-prefix LEGAL
// RUN: gqc-opt %s -p '%{grouped},%{legal},%{kernels}' | filecheck %s --check-prefix KERNELS
// RUN: gqc-opt %s -p '%{grouped},%{legal},%{kernels}' -t triton | filecheck %s --check-prefix TRITON
// RUN: gqc-opt %s -p '%{grouped},%{legal},%{kernels}' -t ptx | filecheck %s --check-prefix PTX

func.func @forward(%x : tensor<?x4096xbf16>) -> tensor<?x4096xbf16> {
  %w = gq.weight @fc.weight : tensor<4096x4096xbf16>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x4096xbf16>, tensor<4096x4096xbf16>) -> tensor<?x4096xbf16> loc("fc")
  func.return %y : tensor<?x4096xbf16>
}

// Both operands are NVFP4: blocks of 16 under E4M3 scales, and a scale of the whole tensor, which for
// x is taken as the model runs.
// GROUPED:      %x_scale = gq.tensor_scale %x for <1x16 : f8E4M3FN : f4E2M1FN, global = f32>
// GROUPED-NEXT: %xq = gq.qcast %x scale %x_scale by "microscaling" "amax"
// GROUPED:      %y = gq.matmul_t %xq, %wq

// The matrix unit takes them so, and wants scales in tiles of 128 rows by 4.
// LEGAL:        %{{.*}} = gq.pack %xq layout <bytes, scales = swizzle_32_4_4>
// LEGAL-SAME:     -> tensor<?x2048xi8>, tensor<?x64x2x256xf8E4M3FN>, tensor<1xf32>
// LEGAL:        %{{.*}} = gq.pack %wq layout <bytes, scales = swizzle_32_4_4>
// LEGAL:        %y = gq.matmul_t %xq_1, %wq_1 decision <native, "mxf4nvf4 takes f4E2M1FN by f4E2M1FN under f8E4M3FN as they are">

// A kernel that quantizes x, and one that multiplies, for up to 128 rows or any.
// KERNELS:      %x_1, %x_2 = gq.launch [@quantize_{{.*}}_any] rows [-1] on(%x, %x_scale
// KERNELS:      %y = gq.launch [@matmul_{{.*}}_m128, @matmul_{{.*}}_any] rows [128, -1] on(%x_2, %x_1, %x_scale
// KERNELS:        tile.dot_scaled %acc_2, %x_codes, %x_scale_2, %4, %scale_2

// All four copies of a step are asked for together, and share a barrier.
// TRITON:       x_tile = x.load([m, k_byte])
// TRITON-NEXT:  w_tile = w.load([n, k_byte])
// TRITON-NEXT:  k_tile = k // 64
// TRITON-NEXT:  = x_scale.load([m_tile, k_tile, 0, 0])
// TRITON-NEXT:  = scale.load([n_tile, k_tile, 0, 0])
// TRITON:       acc = tl.dot_scaled({{.*}}, "e2m1", {{.*}}, "e2m1", acc)
// TRITON:       y.store([m, n]

// x is quantized by one instruction for two codes, and tiles of codes and of both scales are copied;
// the matrix unit waits for none of it.
// PTX:          cvt.rn.satfinite.e2m1x2.f32
// PTX:          cp.async.bulk.tensor
// PTX:          tcgen05.cp
// PTX:          tcgen05.cp
// PTX:          tcgen05.mma.cta_group::1.kind::mxf4nvf4.block_scale
