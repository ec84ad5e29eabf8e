"""Kernels for the tests of the Triton backend: one linear layer through the compiler's passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gqc.dialects.text import context, parse_ir
from gqc.dialects.tile import KernelOp
from gqc.passes.assign_layouts import AssignLayouts
from gqc.passes.legalize import Legalize
from gqc.passes.lower_to_tile import LowerToTile
from gqc.passes.split_m_buckets import SplitMBuckets

LAYER = """
func.func @layer(%x: tensor<?x{k}x{act}>, %b: tensor<{n}x{act}>) -> tensor<?x{n}x{act}> {{
  %w = gq.weight @w : tensor<{n}x{k}x{act}>
  %q = gq.qcast %w by "rtn" "no_clip" : tensor<{n}x{k}x{act}> -> tensor<{n}x{k}x{type}>
  %y = gq.matmul_t %x, %q {bias}
    : (tensor<?x{k}x{act}>, tensor<{n}x{k}x{type}>{bias_type}) -> tensor<?x{n}x{act}>
  func.return %y : tensor<?x{n}x{act}>
}}
"""

Build = Callable[..., list[KernelOp]]


def kernels_of(
    type_: str, n: int, k: int, act: str = "f16", target: str = "sm_90", bias: bool = False
) -> list[KernelOp]:
    """The kernels of a linear layer [N, K], one for each bucket of rows."""
    text = LAYER.format(
        type=f"!gq.block_scaled<{type_}>",
        n=n,
        k=k,
        act=act,
        bias="bias %b" if bias else "",
        bias_type=f", tensor<{n}x{act}>" if bias else "",
    )
    module = parse_ir(text)
    for lower in (Legalize, AssignLayouts, SplitMBuckets, LowerToTile):
        lower(target).apply(context(), module)
    module.verify()
    return [op for op in module.walk() if isinstance(op, KernelOp)]


@pytest.fixture(scope="session")
def build() -> Build:
    return kernels_of
