// The whole compiler on one command line: imported IR in, kernel source out, for a GPU and a CPU.
// RUN: gqc-opt %s -p 'recognize-linears,quantize-weights{schemes="*=int4_g32"},legalize{target=sm_90},assign-layouts{target=sm_90},split-m-buckets{target=sm_90},lower-to-tile{target=sm_90},fold-weights' -t triton | filecheck %s --check-prefix TRITON
// RUN: gqc-opt %s -p 'recognize-linears,quantize-weights{schemes="*=int4_g32"},legalize{target=cpu_avx2},assign-layouts{target=cpu_avx2},split-m-buckets{target=cpu_avx2},lower-to-tile{target=cpu_avx2},fold-weights' -t llvm | filecheck %s --check-prefix LLVM

// TRITON:      @triton.jit
// TRITON:      def {{.*}}m16(x, w, scale, zero, bias, y, M):
// TRITON:        tl.dot(
// TRITON:      def {{.*}}m64(x, w, scale, zero, bias, y, M):

// LLVM:        define void @{{.*}}_m1.program"(
// LLVM:        fmul {{.*}}<8 x float>
// LLVM:        define void @{{.*}}_m1"(
// LLVM:        define void @{{.*}}_m2.program"(
func.func @forward(%x : tensor<?x128xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @fc.weight : tensor<64x128xbf16>
  %b = gq.weight @fc.bias : tensor<64xbf16>
  %y = fx.call "aten.linear.default"(%x, %w, %b) : (tensor<?x128xbf16>, tensor<64x128xbf16>, tensor<64xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}
