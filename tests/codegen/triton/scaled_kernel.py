"""A kernel of block-scaled fp8 as `emit` prints it, with scales in rows: tcgen05 is serialised."""

SOURCE = '''"""Triton kernel mx for sm_100 (matrix: mxf8f6f4), printed by gqc."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["M"])
def mx(x, x_scale, w, scale, y, M):
    """y = x @ W.T; each program makes a 128×128 tile of y.

    x: float8e4nv [M, 4096]
    x_scale: uint8 [M, 128]
    w: float8e4nv [4096, 4096]
    scale: uint8 [4096, 128]
    y: bfloat16 [M, 4096]
    """
    offs_m = (tl.program_id(0) * 128 + tl.arange(0, 128)).to(tl.int64)
    offs_n = tl.program_id(1) * 128 + tl.arange(0, 128)
    acc = tl.full((128, 128), 0.0, tl.float32)
    for k in range(0, 4096, 128):
        offs_k = k + tl.arange(0, 128)
        offs_g = k // 32 + tl.arange(0, 4)
        x_tile = tl.load(x + offs_m[:, None] * 4096 + offs_k[None, :], mask=offs_m[:, None] < M)
        xs = tl.load(x_scale + offs_m[:, None] * 128 + offs_g[None, :], mask=offs_m[:, None] < M)
        w_tile = tl.load(w + offs_n[:, None] * 4096 + offs_k[None, :])
        s = tl.load(scale + offs_n[:, None] * 128 + offs_g[None, :])
        acc = tl.dot_scaled(x_tile, xs, "e4m3", tl.trans(w_tile), s, "e4m3", acc)
    pointers = y + offs_m[:, None] * 4096 + offs_n[None, :]
    tl.store(pointers, acc.to(tl.bfloat16), mask=offs_m[:, None] < M)


SIGNATURE = {
    "x": "*fp8e4nv",
    "x_scale": "*u8",
    "w": "*fp8e4nv",
    "scale": "*u8",
    "y": "*bf16",
    "M": "i32",
}
OPTIONS = {"num_warps": 8, "num_stages": 3, "enable_fp_fusion": True}
'''
