// Every constraint of the operations on channels, by its number.
// RUN: gqc-opt %s --split-input-file --verify-diagnostics --parsing-diagnostics | filecheck %s

// CHECK: gq.scale_channels C1: tensor<?x64xf32> has no dimension 2
func.func @f(%x : tensor<?x64xf32>, %f : tensor<64xf32>) {
  %y = gq.scale_channels %x by %f along 2 : tensor<?x64xf32>, tensor<64xf32> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.scale_channels C2: tensor<32xf32> does not give one number for each channel of tensor<?x64xf32>
func.func @f(%x : tensor<?x64xf32>, %f : tensor<32xf32>) {
  %y = gq.scale_channels %x by %f along 1 : tensor<?x64xf32>, tensor<32xf32> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.scale_channels C3: the type changes
func.func @f(%x : tensor<?x64xf16>, %f : tensor<64xf32>) {
  %y = gq.scale_channels %x by %f along 1 : tensor<?x64xf16>, tensor<64xf32> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.scale_channels C4: tensor<64xi64> does not hold floats
func.func @f(%x : tensor<?x64xf32>, %f : tensor<64xi64>) {
  %y = gq.scale_channels %x by %f along 1 : tensor<?x64xf32>, tensor<64xi64> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.gather_channels C1: tensor<?x64xf32> has no dimension -1
func.func @f(%x : tensor<?x64xf32>, %o : tensor<64xi64>) {
  %y = gq.gather_channels %x by %o along -1 : tensor<?x64xf32>, tensor<64xi64> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.gather_channels C2: tensor<64xi64> does not give one number for each channel of tensor<?x64xf32>
func.func @f(%x : tensor<?x64xf32>, %o : tensor<64xi64>) {
  %y = gq.gather_channels %x by %o along 0 : tensor<?x64xf32>, tensor<64xi64> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.gather_channels C3: the type changes
func.func @f(%x : tensor<?x64xf32>, %o : tensor<64xi64>) {
  %y = gq.gather_channels %x by %o along 1 : tensor<?x64xf32>, tensor<64xi64> -> tensor<8x64xf32>
  func.return
}

// -----

// CHECK: gq.gather_channels C4: the order is tensor<64xi32>, not of i64
func.func @f(%x : tensor<?x64xf32>, %o : tensor<64xi32>) {
  %y = gq.gather_channels %x by %o along 1 : tensor<?x64xf32>, tensor<64xi32> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.gather_channels C5: blocks of tensor<8x64x!gq.block_scaled<1x32 : f16 : ui4>> extend along 1
func.func @f(%x : tensor<8x64x!gq.block_scaled<1x32 : f16 : ui4>>, %o : tensor<64xi64>) {
  %y = gq.gather_channels %x by %o along 1 : tensor<8x64x!gq.block_scaled<1x32 : f16 : ui4>>, tensor<64xi64> -> tensor<8x64x!gq.block_scaled<1x32 : f16 : ui4>>
  func.return
}

// -----

// CHECK: gq.rotate_channels C1: tensor<?x64xf32> has no blocks of 48
func.func @f(%x : tensor<?x64xf32>) {
  %y = gq.rotate_channels %x blocks 48 : tensor<?x64xf32> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.rotate_channels C1: tensor<?x64xf32> has no blocks of 128
func.func @f(%x : tensor<?x64xf32>) {
  %y = gq.rotate_channels %x blocks 128 : tensor<?x64xf32> -> tensor<?x64xf32>
  func.return
}

// -----

// CHECK: gq.rotate_channels C2: the type changes
func.func @f(%x : tensor<?x64xf32>) {
  %y = gq.rotate_channels %x blocks 32 : tensor<?x64xf32> -> tensor<8x64xf32>
  func.return
}

// -----

// CHECK: gq.rotate_channels C3: tensor<?x64xi8> does not hold floats
func.func @f(%x : tensor<?x64xi8>) {
  %y = gq.rotate_channels %x blocks 32 : tensor<?x64xi8> -> tensor<?x64xi8>
  func.return
}
