// legalize: how each quantized matmul is multiplied, with the reason. No target here multiplies
// integer codes as they are, so each gets an explicit gq.dcast to the type of its activations.
// RUN: gqc-opt %s -p legalize{target=sm_90} | filecheck %s
// RUN: gqc-opt %s -p legalize{target=cpu_avx512bf16} | filecheck %s --check-prefix CPU
// RUN: not gqc-opt %s -p legalize{target=tpu} 2>&1 | filecheck %s --check-prefix UNKNOWN

// CHECK:      %x: tensor<?x128xbf16>
// CHECK-NEXT:   %w = gq.weight @fc.weight : tensor<64x128xbf16>
// CHECK-NEXT:   %q = gq.qcast %w by "rtn" "minmax"
// CHECK-NEXT:   %w_1 = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<64x128xbf16>
// CHECK-NEXT:   %y = gq.matmul_t %x, %w_1 decision <emulated, "sm_90 multiplies no ui4: decoded in registers, then wgmma in bf16"> : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
// A layer that was kept stays as it is.
// CHECK-NEXT:   %v = gq.weight @head.weight
// CHECK-NEXT:   %z = gq.matmul_t %y, %v decision <kept, "the output head is kept by default"> : (tensor<?x64xbf16>, tensor<8x64xbf16>) -> tensor<?x8xbf16>

// CPU:          %y = gq.matmul_t %x, %w_1 decision <emulated, "cpu_avx512bf16 multiplies no ui4: decoded in registers, then vdpbf16ps in bf16">

// UNKNOWN:      gqc-opt: unknown target 'tpu': choose one of auto, cpu, sm_80, sm_86, sm_89, sm_90, sm_100, sm_103, sm_120, gfx942, gfx950, cpu_amx, cpu_avx512bf16, cpu_cooperlake, cpu_avx512vnni, cpu_avx512, cpu_avxvnni, cpu_avx2, cpu_neon, cpu_portable
func.func @forward(%x : tensor<?x128xbf16>) -> tensor<?x8xbf16> {
  %w = gq.weight @fc.weight : tensor<64x128xbf16>
  %q = gq.qcast %w by "rtn" "minmax" : tensor<64x128xbf16> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %y = gq.matmul_t %x, %q : (tensor<?x128xbf16>, tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>) -> tensor<?x64xbf16>
  %v = gq.weight @head.weight : tensor<8x64xbf16>
  %z = gq.matmul_t %y, %v decision <kept, "the output head is kept by default"> : (tensor<?x64xbf16>, tensor<8x64xbf16>) -> tensor<?x8xbf16>
  func.return %z : tensor<?x8xbf16>
}
