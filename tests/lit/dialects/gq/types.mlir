// Every way to write a block-scaled element type: one type for integers, MX and NVFP4.
// RUN: gqc-opt %s | gqc-opt | filecheck %s

"test.op"() {
  // Integers, symmetric: q·s.
  // CHECK:      int = [
  // CHECK-SAME: tensor<8x64x!gq.block_scaled<1x32 : f16 : si1>>,
  // CHECK-SAME: tensor<8x64x!gq.block_scaled<1x32 : f16 : si2>>,
  // CHECK-SAME: tensor<8x64x!gq.block_scaled<1x32 : bf16 : si3>>,
  // CHECK-SAME: tensor<8x64x!gq.block_scaled<1x32 : f32 : si4>>,
  // CHECK-SAME: tensor<8x64x!gq.block_scaled<1x32 : f16 : si8>>]
  int = [
    tensor<8x64x!gq.block_scaled<1x32 : f16 : si1>>,
    tensor<8x64x!gq.block_scaled<1x32 : f16 : si2>>,
    tensor<8x64x!gq.block_scaled<1x32 : bf16 : si3>>,
    tensor<8x64x!gq.block_scaled<1x32 : f32 : si4>>,
    tensor<8x64x!gq.block_scaled<1x32 : f16 : si8>>
  ],

  // Zero points: (q − z)·s with a float z, q·s + z, (q − z)·s with an integer z.
  // CHECK-SAME: zero = [
  // CHECK-SAME: !gq.block_scaled<1x128 : f16 : ui4, zero = f16, zero_mode = original>,
  // CHECK-SAME: !gq.block_scaled<1x128 : f16 : ui4, zero = bf16, zero_mode = rescale>,
  // CHECK-SAME: !gq.block_scaled<1x128 : f16 : ui4, zero = ui4, zero_mode = quantized>,
  // CHECK-SAME: !gq.block_scaled<1x64 : f32 : ui1, zero = f32, zero_mode = rescale>,
  // CHECK-SAME: !gq.block_scaled<1x64 : f32 : ui2, zero = ui2, zero_mode = quantized>,
  // CHECK-SAME: !gq.block_scaled<1x64 : f32 : ui3, zero = ui3, zero_mode = quantized>,
  // CHECK-SAME: !gq.block_scaled<1x64 : f32 : ui8, zero = ui8, zero_mode = quantized>]
  zero = [
    !gq.block_scaled<1x128 : f16 : ui4, zero = f16, zero_mode = original>,
    !gq.block_scaled<1x128 : f16 : ui4, zero = bf16, zero_mode = rescale>,
    !gq.block_scaled<1x128 : f16 : ui4, zero = ui4, zero_mode = quantized>,
    !gq.block_scaled<1x64 : f32 : ui1, zero = f32, zero_mode = rescale>,
    !gq.block_scaled<1x64 : f32 : ui2, zero = ui2, zero_mode = quantized>,
    !gq.block_scaled<1x64 : f32 : ui3, zero = ui3, zero_mode = quantized>,
    !gq.block_scaled<1x64 : f32 : ui8, zero = ui8, zero_mode = quantized>
  ],

  // Blocks: any extent in each dimension, and whole dimensions.
  // CHECK-SAME: block = [
  // CHECK-SAME: !gq.block_scaled<1x16 : f16 : ui4>,
  // CHECK-SAME: !gq.block_scaled<1x256 : f16 : ui4>,
  // CHECK-SAME: !gq.block_scaled<1x? : f16 : ui4>,
  // CHECK-SAME: !gq.block_scaled<128x128 : f32 : f8E4M3FN>,
  // CHECK-SAME: !gq.block_scaled<?x? : f32 : f8E5M2>,
  // CHECK-SAME: !gq.block_scaled<32 : f16 : si8>,
  // CHECK-SAME: !gq.block_scaled<1x1x32 : f16 : si8>]
  block = [
    !gq.block_scaled<1x16 : f16 : ui4>,
    !gq.block_scaled<1x256 : f16 : ui4>,
    !gq.block_scaled<1x? : f16 : ui4>,
    !gq.block_scaled<128x128 : f32 : f8E4M3FN>,
    !gq.block_scaled<?x? : f32 : f8E5M2>,
    !gq.block_scaled<32 : f16 : si8>,
    !gq.block_scaled<1x1x32 : f16 : si8>
  ],

  // MXFP4, both MXFP6, both MXFP8, MXINT8, and NVFP4 with its scale of the whole tensor.
  // CHECK-SAME: mx = [
  // CHECK-SAME: !gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>,
  // CHECK-SAME: !gq.block_scaled<1x32 : f8E8M0FNU : f6E2M3FN>,
  // CHECK-SAME: !gq.block_scaled<1x32 : f8E8M0FNU : f6E3M2FN>,
  // CHECK-SAME: !gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>,
  // CHECK-SAME: !gq.block_scaled<1x32 : f8E8M0FNU : f8E5M2>,
  // CHECK-SAME: !gq.block_scaled<1x32 : f8E8M0FNU : si8>,
  // CHECK-SAME: !gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>]
  mx = [
    !gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>,
    !gq.block_scaled<1x32 : f8E8M0FNU : f6E2M3FN>,
    !gq.block_scaled<1x32 : f8E8M0FNU : f6E3M2FN>,
    !gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>,
    !gq.block_scaled<1x32 : f8E8M0FNU : f8E5M2>,
    !gq.block_scaled<1x32 : f8E8M0FNU : si8>,
    !gq.block_scaled<1x16 : f8E4M3FN : f4E2M1FN, global = f32>
  ],

  // Codebooks: NF4, bitsandbytes' FP4, IQ4_NL. Elsewhere than here they have the dialect's prefix.
  // CHECK-SAME: codebooks = [
  // CHECK-SAME: !gq.block_scaled<1x64 : f32 : nf4>,
  // CHECK-SAME: !gq.block_scaled<1x64 : f32 : fp4_bnb>,
  // CHECK-SAME: !gq.block_scaled<1x32 : f16 : iq4_nl>,
  // CHECK-SAME: vector<4x64x!gq.nf4>]
  codebooks = [
    !gq.block_scaled<1x64 : f32 : nf4>,
    !gq.block_scaled<1x64 : f32 : fp4_bnb>,
    !gq.block_scaled<1x32 : f16 : !gq.iq4_nl>,
    vector<4x64x!gq.nf4>
  ],

  // Order of the options is free on input; `zero_mode = none` is not printed.
  // CHECK-SAME: !gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale, global = f32>
  // CHECK-SAME: !gq.block_scaled<1x32 : f16 : ui4>
  options = [
    !gq.block_scaled<1x32 : f16 : ui4, global = f32, zero_mode = rescale, zero = f16>,
    !gq.block_scaled<1x32 : f16 : ui4, zero_mode = none>
  ]
} : () -> ()
