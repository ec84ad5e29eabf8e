// One linear layer on CDNA4: MXFP4 operands, their scales shuffled for a lane to read four at once,
// and the instruction that takes them.
//
// DEFINE: %{grouped} = recognize-linears,quantize-weights{schemes="*=mxfp4"},quantize-activations{schemes="*=mxfp4"}
// DEFINE: %{legal} = legalize{target=gfx950},assign-layouts{target=gfx950},split-m-buckets{target=gfx950}
// DEFINE: %{kernels} = lower-quantizers{target=gfx950},lower-to-tile{target=gfx950},fold-weights
// RUN: gqc-opt %s -p '%{grouped},%{legal}' | filecheck %s --check-prefix LEGAL
// RUN: gqc-opt %s -p '%{grouped},%{legal},%{kernels}' | filecheck %s --check-prefix KERNELS

func.func @forward(%x : tensor<?x4096xbf16>) -> tensor<?x4096xbf16> {
  %w = gq.weight @fc.weight : tensor<4096x4096xbf16>
  %y = fx.call "aten.linear.default"(%x, %w) : (tensor<?x4096xbf16>, tensor<4096x4096xbf16>) -> tensor<?x4096xbf16> loc("fc")
  func.return %y : tensor<?x4096xbf16>
}

// Tiles of 32 rows by 8 columns of scales, 256 bytes: 128 of them each way for w.
// LEGAL:        %{{.*}} = gq.pack %xq layout <bytes, scales = shuffle_32_8>
// LEGAL-SAME:     -> tensor<?x2048xi8>, tensor<?x16x256xf8E8M0FNU>
// LEGAL:        %{{.*}} = gq.pack %wq layout <bytes, scales = shuffle_32_8>
// LEGAL-SAME:     -> tensor<4096x2048xi8>, tensor<128x16x256xf8E8M0FNU>
// LEGAL:        gq.matmul_t {{.*}} decision <native, "mxf8f6f4 takes f4E2M1FN by f4E2M1FN under f8E8M0FNU as they are">

// The quantizer writes tiles as the matmul reads them.
// KERNELS:      tile.kernel @quantize_{{.*}}_packed_shuffle_32_8_any
// KERNELS:        %[[APART:.*]] = tile.reshape %{{.*}} : vector<32x8xf8E8M0FNU> to vector<1x2x16x1x2x4xf8E8M0FNU>
// KERNELS-NEXT:   tile.permute %[[APART]] order = [0, 3, 5, 2, 4, 1]

// The matmul undoes it in registers, where it is the order in which the instruction wants them.
// KERNELS:      tile.kernel @matmul_{{.*}}_m32
// KERNELS:        %[[TILES:.*]] = tile.load %scale
// KERNELS:        %[[DIGITS:.*]] = tile.reshape %[[TILES]] : vector<2x1x256xf8E8M0FNU> to vector<2x1x4x16x2x2xf8E8M0FNU>
// KERNELS-NEXT:   tile.permute %[[DIGITS]] order = [0, 5, 3, 1, 4, 2]
// KERNELS:        tile.dot_scaled
