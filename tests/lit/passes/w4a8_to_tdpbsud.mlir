// One layer of w4a8_g32 on a CPU with AMX. Few rows of x are multiplied as with VNNI; for many, codes
// are unpacked once to a program's memory, as bytes, and a step multiplies 32 rows by one group.
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w4a8_g32"},quantize-activations{schemes="*=w4a8_g32"},legalize{target=cpu_amx},assign-layouts{target=cpu_amx},split-m-buckets{target=cpu_amx},lower-quantizers{target=cpu_amx},lower-to-tile{target=cpu_amx}' | filecheck %s
// RUN: gqc-opt %s -p 'quantize-weights{schemes="*=w4a8_g32"},quantize-activations{schemes="*=w4a8_g32"},legalize{target=cpu_amx},assign-layouts{target=cpu_amx},split-m-buckets{target=cpu_amx},lower-quantizers{target=cpu_amx},lower-to-tile{target=cpu_amx}' -t llvm | filecheck %s --check-prefix LLVM

// CHECK:      gq.launch [@matmul_bf16_si8_si4_g32_f16_48x64_m1, @matmul_bf16_si8_si4_g32_f16_48x64_m2, @matmul_bf16_si8_si4_g32_f16_48x64_m16, @matmul_bf16_si8_si4_g32_f16_48x64_any]
// CHECK-SAME: decision = #gq.decision<native, "vpdpbusd or tdpbsud takes si8 by si4 under f32 and f16">
// CHECK:      tile.kernel @matmul_bf16_si8_si4_g32_f16_48x64_any({{.*}}) tile<256, 32>
// CHECK:        %decoded = memref.alloca() : memref<64x32xui8>
// CHECK:        %w_tile = tile.cast %codes : vector<32x16xui4> to vector<32x16xui8>
// CHECK-NEXT:   tile.store %w_tile, %decoded[%place, %column] : vector<32x16xui8>, memref<64x32xui8>
// CHECK:        %w_tile_1 = tile.load %decoded[%place_1, %c0] : memref<64x32xui8> -> vector<32x32xui8>
// CHECK:        %part = tile.dot %{{.*}}, %x_codes, %w_tile_1 : vector<32x32xsi8>, vector<32x32xui8> -> vector<32x32xi32>

// A group of 32 is half a tile of x, and half the rows of one of weights. What is missing of signed
// codes is added to the sums as they are read.
// LLVM:       define void @"matmul_bf16_si8_si4_g32_f16_48x64_any.program"
// LLVM:         call void @"llvm.x86.tilezero"(i8 3)
// LLVM:         call void @"llvm.x86.tileloadd64"(i8 4, ptr %{{.*}}, i64 64)
// LLVM:         call void @"llvm.x86.tileloadd64"(i8 6, ptr %{{.*}}, i64 128)
// LLVM:         call void @"llvm.x86.tdpbsud"(i8 0, i8 4, i8 6)
// LLVM:         call void @"llvm.x86.tilestored64"(i8 3, ptr %{{.*}}, i64 128)
// LLVM:         mul <16 x i32> %{{.*}}, splat (i32 -8)
// LLVM:         add <16 x i32>
// LLVM:         sitofp <16 x i32>
func.func @forward(%x : tensor<?x64xbf16>) -> tensor<?x48xbf16> {
  %w = gq.weight @fc.weight : tensor<48x64xbf16>
  %y = gq.matmul_t %x, %w : (tensor<?x64xbf16>, tensor<48x64xbf16>) -> tensor<?x48xbf16>
  func.return %y : tensor<?x48xbf16>
}
