// Every gq operation, as the stages use them: a weight, quantized, packed, and its matmul.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | filecheck %s --check-prefix GENERIC

// CHECK-LABEL: func.func @grouped
// CHECK:         %w = gq.weight @fc.weight : tensor<64x128xf32>
// CHECK-NEXT:    %b = gq.weight @fc.bias : tensor<64xf32>
// CHECK-NEXT:    %q = gq.qcast %w by "rtn" "minmax" : tensor<64x128xf32> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
// CHECK-NEXT:    %y = gq.matmul_t %x, %q bias %b : (tensor<?x128xf32>, tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>, tensor<64xf32>) -> tensor<?x64xf32>
// CHECK-NEXT:    %v = gq.weight @proj.weight : tensor<64x32xf32>
// CHECK-NEXT:    %t = gq.transpose %v : tensor<64x32xf32> -> tensor<32x64xf32>
// CHECK-NEXT:    %z = gq.matmul_t %y, %t decision <kept, "no scheme names this layer"> {note = "odd"} : (tensor<?x64xf32>, tensor<32x64xf32>) -> tensor<?x32xf32>
// GENERIC:       %w = "gq.weight"() <{fqn = @fc.weight}> : () -> tensor<64x128xf32>
// GENERIC:       %q = "gq.qcast"(%w) <{quantizer = "rtn", scale_rule = "minmax"}> : (tensor<64x128xf32>) -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
// GENERIC-NEXT:  %y = "gq.matmul_t"(%x, %q, %b) <{operandSegmentSizes = array<i32: 1, 1, 1, 0>}> : (tensor<?x128xf32>, tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>, tensor<64xf32>) -> tensor<?x64xf32>
// GENERIC:       %t = "gq.transpose"(%v) : (tensor<64x32xf32>) -> tensor<32x64xf32>
// GENERIC-NEXT:  %z = "gq.matmul_t"(%y, %t) <{decision = #gq.decision<kept, "no scheme names this layer">, operandSegmentSizes = array<i32: 1, 1, 0, 0>}> {note = "odd"} : (tensor<?x64xf32>, tensor<32x64xf32>) -> tensor<?x32xf32>
func.func @grouped(%x : tensor<?x128xf32>) -> tensor<?x32xf32> {
  %w = gq.weight @fc.weight : tensor<64x128xf32>
  %b = gq.weight @fc.bias : tensor<64xf32>
  %q = gq.qcast %w by "rtn" "minmax" : tensor<64x128xf32> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
  %y = gq.matmul_t %x, %q bias %b : (tensor<?x128xf32>, tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>, tensor<64xf32>) -> tensor<?x64xf32>
  %v = gq.weight @proj.weight : tensor<64x32xf32>
  %t = gq.transpose %v : tensor<64x32xf32> -> tensor<32x64xf32>
  %z = gq.matmul_t %y, %t decision <kept, "no scheme names this layer"> {note = "odd"} : (tensor<?x64xf32>, tensor<32x64xf32>) -> tensor<?x32xf32>
  func.return %z : tensor<?x32xf32>
}

// Packed for a GPU, in words along K; scales are [K/32, N]. Three bits are two planes (2 + 1), and so
// are integer zero points.
// CHECK-LABEL: func.func @packed
// CHECK:         %high, %low, %s, %z2, %z1 = gq.pack %q layout <k_words> : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x8xi32>, tensor<64x4xi32>, tensor<4x64xf16>, tensor<4x4xi32>, tensor<4x2xi32>
// CHECK-NEXT:    %u = gq.unpack %high, %low, %s, %z2, %z1 layout <k_words> : tensor<64x8xi32>, tensor<64x4xi32>, tensor<4x64xf16>, tensor<4x4xi32>, tensor<4x2xi32> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>>
// CHECK-NEXT:    %w = gq.dcast %u : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x128xbf16>
// GENERIC:       %high, %low, %s, %z2, %z1 = "gq.pack"(%q) <{layout = #gq.layout<k_words>}> : (tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>>) -> (tensor<64x8xi32>, tensor<64x4xi32>, tensor<4x64xf16>, tensor<4x4xi32>, tensor<4x2xi32>)
// GENERIC-NEXT:  %u = "gq.unpack"(%high, %low, %s, %z2, %z1) <{layout = #gq.layout<k_words>}>
// GENERIC-NEXT:  %w = "gq.dcast"(%u)
func.func @packed(%q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>>) -> tensor<64x128xbf16> {
  %high, %low, %s, %z2, %z1 = gq.pack %q layout <k_words> : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x8xi32>, tensor<64x4xi32>, tensor<4x64xf16>, tensor<4x4xi32>, tensor<4x2xi32>
  %u = gq.unpack %high, %low, %s, %z2, %z1 layout <k_words> : tensor<64x8xi32>, tensor<64x4xi32>, tensor<4x64xf16>, tensor<4x4xi32>, tensor<4x2xi32> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>>
  %w = gq.dcast %u : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui3, zero = ui3, zero_mode = quantized>> -> tensor<64x128xbf16>
  func.return %w : tensor<64x128xbf16>
}

// Packed for a CPU: the rows (100, filled up to 128) in panels of 64 lanes.
// CHECK-LABEL: func.func @lanes
// CHECK:         %p, %s = gq.pack %q layout <lane_words, lanes = 64> : tensor<100x128x!gq.block_scaled<1x? : bf16 : si8>> -> tensor<2x32x64xi32>, tensor<2x1x64xbf16>
// GENERIC:       %p, %s = "gq.pack"(%q) <{layout = #gq.layout<lane_words, lanes = 64>}>
func.func @lanes(%q : tensor<100x128x!gq.block_scaled<1x? : bf16 : si8>>) {
  %p, %s = gq.pack %q layout <lane_words, lanes = 64> : tensor<100x128x!gq.block_scaled<1x? : bf16 : si8>> -> tensor<2x32x64xi32>, tensor<2x1x64xbf16>
  func.return
}

// A matmul on a packed weight, with a tile schedule for each bucket of rows.
// CHECK-LABEL: func.func @scheduled
// CHECK:         %y = gq.matmul_t %x, %w bias %b decision <emulated, "no unit multiplies ui4"> schedules [#gq.schedule<rows = 16, tile = 16x64x128, scale = before, warps = 4, stages = 3>, #gq.schedule<rows = *, tile = 128x128x64, scale = after, warps = 8, stages = 2>] : (tensor<2x?x128xbf16>, tensor<64x128xbf16>, tensor<64xbf16>) -> tensor<2x?x64xbf16>
// GENERIC:       %y = "gq.matmul_t"(%x, %w, %b) <{decision = #gq.decision<emulated, "no unit multiplies ui4">, schedules = [#gq.schedule<rows = 16, tile = 16x64x128, scale = before, warps = 4, stages = 3>, #gq.schedule<rows = *, tile = 128x128x64, scale = after, warps = 8, stages = 2>], operandSegmentSizes = array<i32: 1, 1, 1, 0>}>
func.func @scheduled(%x : tensor<2x?x128xbf16>, %w : tensor<64x128xbf16>, %b : tensor<64xbf16>) -> tensor<2x?x64xbf16> {
  %y = gq.matmul_t %x, %w bias %b decision <emulated, "no unit multiplies ui4"> schedules [#gq.schedule<rows = 16, tile = 16x64x128, scale = before, warps = 4, stages = 3>, #gq.schedule<rows = *, tile = 128x128x64, scale = after, warps = 8, stages = 2>] : (tensor<2x?x128xbf16>, tensor<64x128xbf16>, tensor<64xbf16>) -> tensor<2x?x64xbf16>
  func.return %y : tensor<2x?x64xbf16>
}

// CHECK-LABEL: func.func @launched
// CHECK:         %y = gq.launch [@mm_m16, @mm_any] rows [16, -1] on(%x : tensor<?x128xbf16>) weights(%p, %s : tensor<64x16xi32>, tensor<4x64xf16>) bias(%b : tensor<64xbf16>) -> tensor<?x64xbf16>
// CHECK-NEXT:    %z = gq.launch [@mm_any] rows [-1] on(%x : tensor<?x128xbf16>) weights(%p, %s : tensor<64x16xi32>, tensor<4x64xf16>) {note = "no bias"} -> tensor<?x64xbf16>
// GENERIC:       %y = "gq.launch"(%x, %p, %s, %b) <{kernels = [@mm_m16, @mm_any], rows = array<i64: 16, -1>, operandSegmentSizes = array<i32: 1, 2, 1>}>
// GENERIC-NEXT:  %z = "gq.launch"(%x, %p, %s) <{kernels = [@mm_any], rows = array<i64: -1>, operandSegmentSizes = array<i32: 1, 2, 0>}> {note = "no bias"}
func.func @launched(%x : tensor<?x128xbf16>, %p : tensor<64x16xi32>, %s : tensor<4x64xf16>, %b : tensor<64xbf16>) -> tensor<?x64xbf16> {
  %y = gq.launch [@mm_m16, @mm_any] rows [16, -1] on (%x : tensor<?x128xbf16>) weights (%p, %s : tensor<64x16xi32>, tensor<4x64xf16>) bias (%b : tensor<64xbf16>) -> tensor<?x64xbf16>
  %z = gq.launch [@mm_any] rows [-1] on (%x : tensor<?x128xbf16>) weights (%p, %s : tensor<64x16xi32>, tensor<4x64xf16>) {note = "no bias"} -> tensor<?x64xbf16>
  func.return %z : tensor<?x64xbf16>
}

// Activations quantized as the model runs, under a scale of the whole tensor that stays a factor.
// CHECK-LABEL: func.func @activations
// CHECK:         %s = gq.tensor_scale %x for <1x16 : f8E4M3FN : f4E2M1FN, global = f32> : tensor<?x32xbf16>
// CHECK-NEXT:    %q = gq.qcast %x scale %s by "microscaling" "amax" : tensor<?x32xbf16> -> tensor<?x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
// CHECK-NEXT:    %d, %t = gq.dcast %q : tensor<?x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> -> tensor<?x32xbf16>, tensor<1xf32>
// CHECK-NEXT:    %y = gq.matmul_t %d, %w bias %b alphas(%t) : (tensor<?x32xbf16>, tensor<8x32xbf16>, tensor<8xbf16>) -> tensor<?x8xbf16>
// CHECK-NEXT:    %c, %z = gq.launch [@quantize] rows [-1] on(%x, %s : tensor<?x32xbf16>, tensor<1xf32>) -> tensor<?x2xf8E4M3FN>, tensor<?x16xi8>
// GENERIC:       %q = "gq.qcast"(%x, %s)
// GENERIC-NEXT:  %d, %t = "gq.dcast"(%q)
// GENERIC-NEXT:  %y = "gq.matmul_t"(%d, %w, %b, %t)
func.func @activations(%x : tensor<?x32xbf16>, %w : tensor<8x32xbf16>, %b : tensor<8xbf16>) -> tensor<?x8xbf16> {
  %s = gq.tensor_scale %x for <1x16 : f8E4M3FN : f4E2M1FN, global = f32> : tensor<?x32xbf16>
  %q = gq.qcast %x scale %s by "microscaling" "amax" : tensor<?x32xbf16> -> tensor<?x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>>
  %d, %t = gq.dcast %q : tensor<?x32x!gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>> -> tensor<?x32xbf16>, tensor<1xf32>
  %y = gq.matmul_t %d, %w bias %b alphas (%t) : (tensor<?x32xbf16>, tensor<8x32xbf16>, tensor<8xbf16>) -> tensor<?x8xbf16>
  %c, %z = gq.launch [@quantize] rows [-1] on (%x, %s : tensor<?x32xbf16>, tensor<1xf32>) -> tensor<?x2xf8E4M3FN>, tensor<?x16xi8>
  func.return %y : tensor<?x8xbf16>
}

// Attributes by themselves.
// CHECK: "test.op"() {layouts = [#gq.layout<k_words>, #gq.layout<lane_words, lanes = 16>], decisions = [#gq.decision<native, "tcgen05">, #gq.decision<emulated, "a \22quoted\22 word">, #gq.decision<kept, "">]} : () -> ()
"test.op"() {
  layouts = [#gq.layout<k_words>, #gq.layout<lane_words, lanes = 16>],
  decisions = [#gq.decision<native, "tcgen05">, #gq.decision<emulated, "a \"quoted\" word">, #gq.decision<kept, "">]
} : () -> ()
