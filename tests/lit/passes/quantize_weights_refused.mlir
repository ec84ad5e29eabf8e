// quantize-weights refuses before it changes anything: every layer whose K its group does not divide,
// at once, with a group that would do; every pattern that names no layer; what is no scheme; what a
// cast cannot say, because it takes inputs of the model or changes other weights.
// RUN: not gqc-opt %s -p 'quantize-weights{schemes="*=int4_g128"}' 2>&1 | filecheck %s --check-prefix RAGGED
// RUN: not gqc-opt %s -p 'quantize-weights{schemes="model.a=int4_g16","decoder.*=int4_g16","model.d=keep"}' 2>&1 | filecheck %s --check-prefix UNMATCHED
// RUN: not gqc-opt %s -p 'quantize-weights{schemes="*=int9_g32"}' 2>&1 | filecheck %s --check-prefix SCHEME
// RUN: not gqc-opt %s -p 'quantize-weights{schemes="model.b=keep","model.c=mxfp4+hadamard","*=int4_g32+gptq"}' 2>&1 | filecheck %s --check-prefix CALIBRATED

// RAGGED:      gqc-opt: K (the second dimension) is not divisible by the group in 2 layers:
// RAGGED-NEXT:   model.a: weight [64, 96], group 128
// RAGGED-NEXT:   model.b: weight [128, 64], group 128
// RAGGED-NEXT: a group of 32 divides all of them; or give these layers a scheme of their own, `row` groups, or ignore them

// UNMATCHED:   gqc-opt: no linear layer matches 'decoder.*', 'model.d': a pattern is a layer's name or a wildcard; the 3 layers are model.a, model.b, model.c

// SCHEME:      gqc-opt: unknown scheme 'int9_g32': write int<bits>_g<group> or int<bits>_row, with _sym for symmetric; bits are (1, 2, 3, 4, 5, 6, 7, 8), groups (16, 32, 64, 128, 256) (for example int4_g128)

// CALIBRATED:  gqc-opt: model.a, model.c: the scheme has transforms or a quantizer that need calibration: compile the nn.Module itself with calibration=, inputs of the model; layers that are called as functions need a scheme without
func.func @forward(%x : tensor<?x96xf32>) -> tensor<?x32xf32> {
  %a = gq.weight @model.a.weight : tensor<64x96xf32>
  %ya = gq.matmul_t %x, %a : (tensor<?x96xf32>, tensor<64x96xf32>) -> tensor<?x64xf32>
  %b = gq.weight @model.b.weight : tensor<128x64xf32>
  %yb = gq.matmul_t %ya, %b : (tensor<?x64xf32>, tensor<128x64xf32>) -> tensor<?x128xf32>
  %c = gq.weight @model.c.weight : tensor<32x128xf32>
  %yc = gq.matmul_t %yb, %c : (tensor<?x128xf32>, tensor<32x128xf32>) -> tensor<?x32xf32>
  func.return %yc : tensor<?x32xf32>
}
