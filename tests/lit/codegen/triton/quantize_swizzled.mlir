// RUN: gqc-opt %s -t triton | filecheck %s

// An activation as NVFP4: two codes a byte, made by the GPU's own conversion, and scales of E4M3 laid
// out in tiles of 128 rows by 4 blocks.

// CHECK:      def convert_e2m1(x):
// CHECK:              cvt.rn.satfinite.e2m1x2.f32 a, $5, $1;
// CHECK:      def convert_e4m3(x):
// CHECK:              cvt.rn.satfinite.e4m3x2.f32 a, $2, $1;
// CHECK:      def quantize(x, x_tensor_scale, scale, codes, M):
// CHECK:          x_tile_1 = x_tile.to(tl.float32)
// CHECK-NEXT:     scale_1 = nvfp4_scale(x_tile_1, tensor_scale, 16, 6.0)
// CHECK-NEXT:     codes_1 = over_scales(x_tile_1, scale_1, tensor_scale)
// CHECK-NEXT:     scale_2 = tl.reshape(convert_e4m3(scale_1), (4, 32, 2, 4))
// CHECK-NEXT:     scale_3 = tl.permute(scale_2, (2, 1, 0, 3))
// CHECK-NEXT:     atoms = tl.reshape(scale_3, (2, 2, 256))
// CHECK:              scale + pid_m * 4096 + offs_k_atom[:, None, None] * 512 + offs_c0_1[None, :, None] * 256 + offs_c0[None, None, :],
// CHECK:              codes + offs_m[:, None] * 256 + offs_byte[None, :],
// CHECK-NEXT:         convert_e2m1(codes_1),
// CHECK-NEXT:         mask=offs_m[:, None] < M,
// CHECK:          return triton.cdiv(M, 128), 4, 1

tile.kernel @quantize(%x: memref<?x512xbf16>, %x_tensor_scale: memref<1xf32>, %scale: memref<?x8x2x256xf8E4M3FN>, %codes: memref<?x256xi8>) tile<128, 64> attributes {summary = "scale, codes = x in blocks of 16, f4E2M1FN under f8E4M3FN", target = "sm_100", num_warps = 16 : i64, matrix = "none"} {
  %c64 = arith.constant 64 : index
  %c2 = arith.constant 2 : index
  %c0 = arith.constant 0 : index
  %c128 = arith.constant 128 : index
  %pid_m = tile.program_id 0
  %m = arith.muli %pid_m, %c128 : index
  %tensor_scale = tile.load %x_tensor_scale[%c0] : memref<1xf32> -> vector<1xf32>
  %pid_k = tile.program_id 1
  %k = arith.muli %pid_k, %c128 : index
  %x_tile = tile.load %x[%m, %k] : memref<?x512xbf16> -> vector<128x128xbf16>
  %x_tile_1 = tile.cast %x_tile : vector<128x128xbf16> to vector<128x128xf32>
  %codes_1, %scale_1 = tile.qcast %x_tile_1, %tensor_scale by "amax" : vector<128x128xf32> -> vector<128x128xf4E2M1FN>, vector<128x8xf8E4M3FN>
  %0 = tile.reshape %scale_1 : vector<128x8xf8E4M3FN> to vector<4x32x2x4xf8E4M3FN>
  %1 = tile.permute %0 order = [2, 1, 0, 3] : vector<4x32x2x4xf8E4M3FN> to vector<2x32x4x4xf8E4M3FN>
  %atoms = tile.reshape %1 : vector<2x32x4x4xf8E4M3FN> to vector<2x2x256xf8E4M3FN>
  %k_atom = arith.muli %pid_k, %c2 : index
  tile.store %atoms, %scale[%pid_m, %k_atom, %c0, %c0] : vector<2x2x256xf8E4M3FN>, memref<?x8x2x256xf8E4M3FN>
  %packed = tile.bitcast %codes_1 : vector<128x128xf4E2M1FN> to vector<128x64xi8>
  %byte = arith.muli %pid_k, %c64 : index
  tile.store %packed, %codes[%m, %byte] : vector<128x64xi8>, memref<?x256xi8>
}
