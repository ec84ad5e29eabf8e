// What a block-scaled type refuses, and the words it uses.
// RUN: gqc-opt %s --split-input-file --parsing-diagnostics | filecheck %s

// CHECK: gq.block_scaled C1: block extents must be positive or `?`
"test.op"() {t = !gq.block_scaled<1x0 : f16 : ui4>} : () -> ()

// -----

// CHECK: gq.block_scaled C2: ui9 is not an element format (ui1, si1, ui2, si2, ui3, si3, ui4, si4,
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui9>} : () -> ()

// -----

// A signless integer does not say what its top bit means.
// CHECK: gq.block_scaled C2: i4 is not an element format
"test.op"() {t = !gq.block_scaled<1x32 : f16 : i4>} : () -> ()

// -----

// CHECK: gq.block_scaled C7: nf4 has no zero point
"test.op"() {t = !gq.block_scaled<1x64 : f16 : nf4, zero = f16, zero_mode = original>} : () -> ()

// -----

// CHECK: gq.block_scaled C3: si8 is not a scale format (f8E8M0FNU, f8E4M3FN, f16, bf16, f32)
"test.op"() {t = !gq.block_scaled<1x32 : si8 : ui4>} : () -> ()

// -----

// CHECK: gq.block_scaled C4: zero mode none does not go with zero point f16
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero = f16>} : () -> ()

// -----

// CHECK: gq.block_scaled C4: zero mode rescale does not go with zero point none
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero_mode = rescale>} : () -> ()

// -----

// CHECK: gq.block_scaled C5: element and zero point must be one unsigned format: ui4, ui8
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero = ui8, zero_mode = quantized>} : () -> ()

// -----

// CHECK: gq.block_scaled C5: element and zero point must be one unsigned format: si4, si4
"test.op"() {t = !gq.block_scaled<1x32 : f16 : si4, zero = si4, zero_mode = quantized>} : () -> ()

// -----

// CHECK: gq.block_scaled C5: element and zero point must be one unsigned format: ui4, f16
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = quantized>} : () -> ()

// -----

// CHECK: gq.block_scaled C6: ui4 is not a format of zero points (f8E8M0FNU, f8E4M3FN, f16, bf16, f32)
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero = ui4, zero_mode = original>} : () -> ()

// -----

// CHECK: gq.block_scaled C6: si4 is not a format of zero points
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero = si4, zero_mode = rescale>} : () -> ()

// -----

// CHECK: gq.block_scaled C7: f4E2M1FN has no zero point
"test.op"() {t = !gq.block_scaled<1x32 : f16 : f4E2M1FN, zero = f16, zero_mode = rescale>} : () -> ()

// -----

// CHECK: gq.block_scaled C8: the tensor scale must be f32, not f16
"test.op"() {t = !gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f16>} : () -> ()

// -----

// CHECK: Expected one of 'none', 'original', 'quantized', 'rescale'
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = tinygemm>} : () -> ()

// -----

// CHECK: Expected one of 'global', 'zero', 'zero_mode'
"test.op"() {t = !gq.block_scaled<1x32 : f16 : ui4, offset = f16>} : () -> ()
