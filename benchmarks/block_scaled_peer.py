"""A block-scaled matmul as Triton's tutorial of that name makes it, for comparison.

What it has of the tutorial: codes and 5-D scales by TMA, one `tl.dot_scaled` a step, programs that
go down the columns of the output, a TMA store, four warps. Who compiles it gives the constants.
"""

import triton
import triton.language as tl


@triton.jit
def block_scaled_peer(
    x,
    x_scale,
    w,
    scale,
    y,
    M: tl.constexpr,
    K: tl.constexpr,
    FORMAT: tl.constexpr,
    PACK: tl.constexpr,
    BLOCK: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    STAGES: tl.constexpr,
):
    """y[M, N] = x[M, K] @ w[N, K].T; PACK codes a byte, a scale for BLOCK of them."""
    pid = tl.program_id(0)
    pid_m, pid_n = pid % tl.cdiv(M, BM), pid // tl.cdiv(M, BM)
    tiles_m: tl.constexpr = BM // 128
    tiles_n: tl.constexpr = BN // 128
    tiles_k: tl.constexpr = BK // BLOCK // 4
    acc = tl.zeros((BM, BN), dtype=tl.float32)
    for i in tl.range(0, K // BK, num_stages=STAGES):  # pyright: ignore[reportGeneralTypeIssues]
        x_tile = x.load([pid_m * BM, i * (BK // PACK)])
        w_tile = w.load([pid_n * BN, i * (BK // PACK)])
        x_scales = x_scale.load([0, pid_m * tiles_m, i * tiles_k, 0, 0])
        x_scales = x_scales.reshape(tiles_m, tiles_k, 32, 4, 4).trans(0, 3, 2, 1, 4)
        w_scales = scale.load([0, pid_n * tiles_n, i * tiles_k, 0, 0])
        w_scales = w_scales.reshape(tiles_n, tiles_k, 32, 4, 4).trans(0, 3, 2, 1, 4)
        acc = tl.dot_scaled(
            x_tile,
            x_scales.reshape(BM, BK // BLOCK),
            FORMAT,
            w_tile.T,
            w_scales.reshape(BN, BK // BLOCK),
            FORMAT,
            acc,
        )
    y.store([pid_m * BM, pid_n * BN], acc.to(tl.bfloat16))
