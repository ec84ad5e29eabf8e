// The operations on codes of narrow floats, in the shape of a kernel: MXFP4 by MXFP8.
// RUN: gqc-opt %s | gqc-opt | filecheck %s
// RUN: gqc-opt --print-op-generic %s | gqc-opt | filecheck %s

// CHECK:         %x_codes = tile.bitcast %x_bytes : vector<128x128xi8> to vector<128x128xf8E4M3FN>
// CHECK:         %q = tile.bitcast %w_bytes : vector<128x64xi8> to vector<128x128xf4E2M1FN>
// CHECK-NEXT:    %w_codes = tile.widen %q : vector<128x128xf4E2M1FN> to vector<128x128xf8E4M3FN>
// CHECK:         %order = tile.permute %packed order = [0, 3, 2, 1, 4] : vector<1x1x32x4x4xf8E8M0FNU> to vector<1x4x32x1x4xf8E8M0FNU>
// CHECK-NEXT:    %w_scale = tile.reshape %order : vector<1x4x32x1x4xf8E8M0FNU> to vector<128x4xf8E8M0FNU>
// CHECK:         %d = tile.dot_scaled %acc, %x_codes, %x_scale, %t, %w_scale : (vector<128x128xf32>, vector<128x128xf8E4M3FN>, vector<128x4xf8E8M0FNU>, vector<128x128xf8E4M3FN>, vector<128x4xf8E8M0FNU>) -> vector<128x128xf32>
tile.kernel @matmul(%x : memref<?x128xi8>, %xs : memref<?x4xf8E8M0FNU>, %w : memref<128x64xi8>, %ws : memref<1x1x32x4x4xf8E8M0FNU>, %y : memref<?x128xf32>) tile<128, 128> {
  %c0 = arith.constant 0 : index
  %acc = tile.full 0.0 : vector<128x128xf32>
  %x_bytes = tile.load %x[%c0, %c0] : memref<?x128xi8> -> vector<128x128xi8>
  %x_codes = tile.bitcast %x_bytes : vector<128x128xi8> to vector<128x128xf8E4M3FN>
  %x_scale = tile.load %xs[%c0, %c0] : memref<?x4xf8E8M0FNU> -> vector<128x4xf8E8M0FNU>
  %w_bytes = tile.load %w[%c0, %c0] : memref<128x64xi8> -> vector<128x64xi8>
  %q = tile.bitcast %w_bytes : vector<128x64xi8> to vector<128x128xf4E2M1FN>
  %w_codes = tile.widen %q : vector<128x128xf4E2M1FN> to vector<128x128xf8E4M3FN>
  %packed = tile.load %ws[%c0, %c0, %c0, %c0, %c0] : memref<1x1x32x4x4xf8E8M0FNU> -> vector<1x1x32x4x4xf8E8M0FNU>
  %order = tile.permute %packed order = [0, 3, 2, 1, 4] : vector<1x1x32x4x4xf8E8M0FNU> to vector<1x4x32x1x4xf8E8M0FNU>
  %w_scale = tile.reshape %order : vector<1x4x32x1x4xf8E8M0FNU> to vector<128x4xf8E8M0FNU>
  %t = tile.transpose %w_codes : vector<128x128xf8E4M3FN> to vector<128x128xf8E4M3FN>
  %d = tile.dot_scaled %acc, %x_codes, %x_scale, %t, %w_scale : (vector<128x128xf32>, vector<128x128xf8E4M3FN>, vector<128x4xf8E8M0FNU>, vector<128x128xf8E4M3FN>, vector<128x4xf8E8M0FNU>) -> vector<128x128xf32>
  tile.store %d, %y[%c0, %c0] : vector<128x128xf32>, memref<?x128xf32>
}
