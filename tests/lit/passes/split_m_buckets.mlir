// split-m-buckets: a tile schedule for each bucket of row counts.
// RUN: gqc-opt %s -p split-m-buckets{target=sm_90} | filecheck %s --check-prefix GPU
// RUN: gqc-opt %s -p split-m-buckets{target=cpu_avx512} | filecheck %s --check-prefix CPU
// RUN: gqc-opt %s -p split-m-buckets{target=cpu_avx512bf16} | filecheck %s --check-prefix BF16
// RUN: gqc-opt %s -p split-m-buckets{target=cpu_amx} | filecheck %s --check-prefix AMX

// GPU-LABEL: func.func @group_of_32
// GPU:         decision <emulated, "why"> schedules [
// GPU-SAME:      #gq.schedule<rows = 16, tile = 16x64x128, scale = before, warps = 4, stages = 4>,
// GPU-SAME:      #gq.schedule<rows = 64, tile = 64x128x64, scale = before, warps = 4, stages = 4>,
// GPU-SAME:      #gq.schedule<rows = *, tile = 128x128x64, scale = before, warps = 8, stages = 3>]

// A CPU takes one block of the format in a step, and scales its sum.
// CPU-LABEL: func.func @group_of_32
// CPU:         decision <emulated, "why"> schedules [
// CPU-SAME:      #gq.schedule<rows = 1, tile = 1x64x32, scale = after, warps = 1, stages = 1>,
// CPU-SAME:      #gq.schedule<rows = 2, tile = 2x64x32, scale = after, warps = 1, stages = 1>,
// CPU-SAME:      #gq.schedule<rows = 16, tile = 4x64x32, scale = after, warps = 1, stages = 1>,
// CPU-SAME:      #gq.schedule<rows = *, tile = 4x64x32, scale = before, warps = 1, stages = 1, panel = 256>]

// A panel holds scaled weights where the float type of the dot does: f32 always, bf16 if both have
// few bits.
// BF16-LABEL: func.func @group_of_32
// BF16:         #gq.schedule<rows = *, tile = 4x64x32, scale = after, warps = 1, stages = 1, panel = 256>]
// BF16-LABEL: func.func @two_significant_bits
// BF16:         #gq.schedule<rows = *, tile = 4x64x32, scale = before, warps = 1, stages = 1, panel = 256>]

// AMX multiplies 32 rows of x by a panel; it reads x from memory as bf16.
// AMX-LABEL:  func.func @group_of_32
// AMX:          #gq.schedule<rows = 16, tile = 4x64x32, scale = after, warps = 1, stages = 1>,
// AMX-SAME:     #gq.schedule<rows = *, tile = 32x64x32, scale = after, warps = 1, stages = 1, panel = 256>]
// AMX-LABEL:  func.func @floats
// AMX:          #gq.schedule<rows = *, tile = 4x64x32, scale = before, warps = 1, stages = 1, panel = 256>]
func.func @group_of_32(%x : tensor<?x128xbf16>, %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>>) -> tensor<?x64xbf16> {
  %w = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>> -> tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

// One word holds 32 codes of one bit, two groups of 16: the scale cannot wait for the sum of a step.
// CPU-LABEL: func.func @one_bit_in_groups_of_16
// CPU:         #gq.schedule<rows = 1, tile = 1x64x32, scale = before, warps = 1, stages = 1>
func.func @one_bit_in_groups_of_16(%x : tensor<?x128xbf16>, %q : tensor<64x128x!gq.block_scaled<1x16 : f16 : ui1, zero = f16, zero_mode = rescale>>) -> tensor<?x64xbf16> {
  %w = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x16 : f16 : ui1, zero = f16, zero_mode = rescale>> -> tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

// One scale a row: the widest step that leaves no tail (here 64 of 192).
// CPU-LABEL: func.func @whole_row
// CPU:         #gq.schedule<rows = 1, tile = 1x64x64, scale = after, warps = 1, stages = 1>
func.func @whole_row(%x : tensor<?x192xbf16>, %q : tensor<64x192x!gq.block_scaled<1x? : f16 : si8>>) -> tensor<?x64xbf16> {
  %w = gq.dcast %q : tensor<64x192x!gq.block_scaled<1x? : f16 : si8>> -> tensor<64x192xbf16>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x192xbf16>, tensor<64x192xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

// A layer that was kept has no schedule.
// GPU-LABEL: func.func @kept
// GPU-NOT:     schedules
// GPU:         func.return
func.func @kept(%x : tensor<?x128xbf16>) -> tensor<?x64xbf16> {
  %w = gq.weight @head.weight : tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w decision <kept, "why"> : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

func.func @two_significant_bits(%x : tensor<?x128xbf16>, %q : tensor<64x128x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>>) -> tensor<?x64xbf16> {
  %w = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f8E8M0FNU : f4E2M1FN>> -> tensor<64x128xbf16>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xbf16>, tensor<64x128xbf16>) -> tensor<?x64xbf16>
  func.return %y : tensor<?x64xbf16>
}

// Some rows of f32 are multiplied by few columns, but a tile holds pairs of those of merged weights.
// CPU-LABEL: func.func @floats
// CPU:         #gq.schedule<rows = 4, tile = 4x64x32, scale = after, warps = 1, stages = 1>,
// CPU-SAME:    #gq.schedule<rows = 16, tile = 8x16x32, scale = after, warps = 1, stages = 1>,
// CPU-LABEL: func.func @pairs_of_floats
// CPU:         #gq.schedule<rows = 16, tile = 8x32x32, scale = after, warps = 1, stages = 1>,
func.func @floats(%x : tensor<?x128xf32>, %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>) -> tensor<?x64xf32> {
  %w = gq.dcast %q : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128xf32>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xf32>, tensor<64x128xf32>) -> tensor<?x64xf32>
  func.return %y : tensor<?x64xf32>
}

func.func @pairs_of_floats(%x : tensor<?x128xf32>, %p : tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>>, %q : tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>>) -> tensor<?x64xf32> {
  %both = gq.concat %p, %q : tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>>, tensor<32x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>>
  %w = gq.dcast %both : tensor<64x128x!gq.block_scaled<1x32 : f16 : ui4>> -> tensor<64x128xf32>
  %y = gq.matmul_t %x, %w decision <emulated, "why"> : (tensor<?x128xf32>, tensor<64x128xf32>) -> tensor<?x64xf32>
  func.return %y : tensor<?x64xf32>
}

// A tile of few rows and all of a long K: two programs make it, each of 2^17 codes. They would have
// too few in a layer of half of K, and there are enough programs in one of 512 columns.
// CPU-LABEL: func.func @few_columns
// CPU:         decision <emulated, "long"> schedules [
// CPU-SAME:      #gq.schedule<rows = 1, tile = 1x64x128, scale = after, warps = 1, stages = 1, parts = 2>,
// CPU-SAME:      #gq.schedule<rows = 16, tile = 4x64x128, scale = after, warps = 1, stages = 1, parts = 2>,
// CPU-SAME:      #gq.schedule<rows = *, tile = 4x64x128, scale = before, warps = 1, stages = 1, panel = 256>]
// CPU:         decision <emulated, "short"> schedules [
// CPU-SAME:      #gq.schedule<rows = 1, tile = 1x64x128, scale = after, warps = 1, stages = 1>,
// CPU:         decision <emulated, "wide"> schedules [
// CPU-SAME:      #gq.schedule<rows = 1, tile = 1x64x128, scale = after, warps = 1, stages = 1>,
// GPU-LABEL: func.func @few_columns
// GPU-NOT:     parts
// GPU:         func.return
func.func @few_columns(
    %x : tensor<?x4096xbf16>, %q : tensor<64x4096x!gq.block_scaled<1x128 : f16 : ui4>>,
    %u : tensor<?x2048xbf16>, %r : tensor<64x2048x!gq.block_scaled<1x128 : f16 : ui4>>,
    %s : tensor<512x4096x!gq.block_scaled<1x128 : f16 : ui4>>)
    -> (tensor<?x64xbf16>, tensor<?x64xbf16>, tensor<?x512xbf16>) {
  %v = gq.dcast %q : tensor<64x4096x!gq.block_scaled<1x128 : f16 : ui4>> -> tensor<64x4096xbf16>
  %y = gq.matmul_t %x, %v decision <emulated, "long"> : (tensor<?x4096xbf16>, tensor<64x4096xbf16>) -> tensor<?x64xbf16>
  %w = gq.dcast %r : tensor<64x2048x!gq.block_scaled<1x128 : f16 : ui4>> -> tensor<64x2048xbf16>
  %z = gq.matmul_t %u, %w decision <emulated, "short"> : (tensor<?x2048xbf16>, tensor<64x2048xbf16>) -> tensor<?x64xbf16>
  %d = gq.dcast %s : tensor<512x4096x!gq.block_scaled<1x128 : f16 : ui4>> -> tensor<512x4096xbf16>
  %t = gq.matmul_t %x, %d decision <emulated, "wide"> : (tensor<?x4096xbf16>, tensor<512x4096xbf16>) -> tensor<?x512xbf16>
  func.return %y, %z, %t : tensor<?x64xbf16>, tensor<?x64xbf16>, tensor<?x512xbf16>
}

// One order of K for all buckets: the scale after the dot in panels too, no parts, no tiles of bf16,
// one step on a GPU. Without the option a matmul says what differs.
// RUN: gqc-opt %s -p "split-m-buckets{target=cpu_amx deterministic=batch}" | filecheck %s --check-prefix ONE
// RUN: gqc-opt %s -p "split-m-buckets{target=sm_90 deterministic=batch}" | filecheck %s --check-prefix ONEGPU
// RUN: gqc-opt %s -p "split-m-buckets{target=cpu_amx}" | filecheck %s --check-prefix WHY
// RUN: not gqc-opt %s -p "split-m-buckets{target=cpu_amx deterministic=yes}" 2>&1 | filecheck %s --check-prefix VALUE
// ONE-LABEL:    func.func @group_of_32
// ONE:            #gq.schedule<rows = *, tile = 4x64x32, scale = after, warps = 1, stages = 1, panel = 256>] {deterministic = "batch"}
// ONE-LABEL:    func.func @two_significant_bits
// ONE:            #gq.schedule<rows = *, tile = 4x64x32, scale = after, warps = 1, stages = 1, panel = 256>] {deterministic = "batch"}
// ONE-LABEL:    func.func @few_columns
// ONE-NOT:        parts
// ONEGPU-LABEL: func.func @group_of_32
// ONEGPU:         #gq.schedule<rows = 16, tile = 16x64x64, scale = before, warps = 4, stages = 4>,
// ONEGPU-SAME:    #gq.schedule<rows = 64, tile = 64x128x64,
// ONEGPU-SAME:    #gq.schedule<rows = *, tile = 128x128x64,
// WHY-LABEL:    func.func @group_of_32
// WHY:            batch = "a row's bits depend on its batch: kernels for 1{{.*}}16 and 17{{.*}} rows differ in the instruction that multiplies"
// VALUE:        deterministic is 'yes': give 'batch', or leave it out
