// DEFINE: %{fc} = \"fc.weight | type: 1x32 : f16 : ui4, zero = f16, zero_mode = rescale | origin: gguf\"
// DEFINE: %{a} = \"a.weight | type: 1x32 : f16 : si4 | origin: gptq | channels: gather=a.input_order\"
// DEFINE: %{b} = \"b.weight | type: 1x32 : f16 : si4 | origin: gptq | channels: gather=a.input_order\"
// DEFINE: %{h} = \"h.weight | kept: dequantized: no kernel scales blocks of 1x8\"
// DEFINE: %{mx} = f8E4M3FN g32 scale=f8E8M0FNU quantizer=microscaling scale_rule=floor
// DEFINE: %{x} = \"x.weight | type: 1x32 : f8E8M0FNU : f8E4M3FN | origin: modelopt | activation: %{mx}\"
// RUN: gqc-opt %s --split-input-file -p "adopt-weights{stored=%{fc},%{a},%{b},%{h},%{x}}" | filecheck %s

// A linear reads its weight as it is stored; the dense weight and its transpose are gone.
// CHECK-LABEL: func.func @stored
// CHECK-NOT:     gq.transpose
// CHECK:         %[[W:.*]] = gq.weight @fc.weight {origin = "gguf"} : tensor<16x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>
// CHECK-NEXT:    gq.matmul_t %{{.*}}, %[[W]] : (tensor<?x64xf32>, tensor<16x64x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>) -> tensor<?x16xf32>
func.func @stored(%x : tensor<?x64xf32>) -> tensor<?x16xf32> {
  %w = gq.weight @fc.weight : tensor<64x16xf32>
  %t = gq.transpose %w : tensor<64x16xf32> -> tensor<16x64xf32>
  %y = gq.matmul_t %x, %t : (tensor<?x64xf32>, tensor<16x64xf32>) -> tensor<?x16xf32>
  func.return %y : tensor<?x16xf32>
}

// -----

// Weights in one order of columns share the gathered input.
// CHECK-LABEL: func.func @ordered
// CHECK:         %[[O:.*]] = gq.weight @a.input_order : tensor<64xi64>
// CHECK-NEXT:    %[[X:.*]] = gq.gather_channels %{{.*}} by %[[O]] along 1
// CHECK-NOT:     gq.gather_channels
// CHECK:         gq.matmul_t %[[X]], %{{.*}}
// CHECK:         gq.matmul_t %[[X]], %{{.*}}
func.func @ordered(%x : tensor<?x64xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>) {
  %a = gq.weight @a.weight : tensor<16x64xf32>
  %b = gq.weight @b.weight : tensor<16x64xf32>
  %ya = gq.matmul_t %x, %a : (tensor<?x64xf32>, tensor<16x64xf32>) -> tensor<?x16xf32>
  %yb = gq.matmul_t %x, %b : (tensor<?x64xf32>, tensor<16x64xf32>) -> tensor<?x16xf32>
  func.return %ya, %yb : tensor<?x16xf32>, tensor<?x16xf32>
}

// -----

// What no kernel reads stays dense, and says why; so does a weight that something else reads.
// CHECK-LABEL: func.func @kept
// CHECK:         gq.matmul_t %{{.*}}, %{{.*}} decision <kept, "dequantized: no kernel scales blocks of 1x8">
// CHECK:         gq.matmul_t %{{.*}}, %{{.*}} decision <kept, "its weight is shared with another operation">
func.func @kept(%x : tensor<?x64xf32>) -> (tensor<?x16xf32>, tensor<?x16xf32>) {
  %h = gq.weight @h.weight : tensor<16x64xf32>
  %s = gq.weight @fc.weight {shared} : tensor<16x64xf32>
  %yh = gq.matmul_t %x, %h : (tensor<?x64xf32>, tensor<16x64xf32>) -> tensor<?x16xf32>
  %ys = gq.matmul_t %x, %s : (tensor<?x64xf32>, tensor<16x64xf32>) -> tensor<?x16xf32>
  func.return %yh, %ys : tensor<?x16xf32>, tensor<?x16xf32>
}

// -----

// Inputs are quantized as the checkpoint says.
// CHECK-LABEL: func.func @activation
// CHECK:         %[[X:.*]] = gq.qcast %{{.*}} by "microscaling" "floor" : tensor<?x64xf32> -> tensor<?x64x!gq.block_scaled<1x32 : f8E8M0FNU : f8E4M3FN>>
// CHECK:         gq.matmul_t %[[X]], %{{.*}}
func.func @activation(%x : tensor<?x64xf32>) -> tensor<?x16xf32> {
  %w = gq.weight @x.weight : tensor<16x64xf32>
  %y = gq.matmul_t %x, %w : (tensor<?x64xf32>, tensor<16x64xf32>) -> tensor<?x16xf32>
  func.return %y : tensor<?x16xf32>
}
