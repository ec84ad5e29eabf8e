"""Kernels for the tests of the Triton backend: one linear layer through the compiler's passes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gqc.dialects.fx import CallOp
from gqc.dialects.gq import LaunchOp
from gqc.dialects.text import context, parse_ir
from gqc.dialects.tile import KernelOp
from gqc.passes.assign_layouts import AssignLayouts
from gqc.passes.fuse_epilogues import FuseEpilogues
from gqc.passes.legalize import Legalize
from gqc.passes.lower_to_tile import LowerToTile
from gqc.passes.merge_linears import MergeLinears
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


FUSED = """
func.func @layer(%x: tensor<?x{k}xbf16>, %r: tensor<?x{n}xbf16>) -> tensor<?x{n}xbf16> {{
  %wa = gq.weight @a.weight : tensor<{n}x{k}xbf16>
  %wb = gq.weight @b.weight : tensor<{n}x{k}xbf16>
  %ba = gq.weight @a.bias : tensor<{n}xbf16>
  %bb = gq.weight @b.bias : tensor<{n}xbf16>
  %qa = gq.qcast %wa by "rtn" "floor" : tensor<{n}x{k}xbf16> -> tensor<{n}x{k}x{type}>
  %qb = gq.qcast %wb by "rtn" "floor" : tensor<{n}x{k}xbf16> -> tensor<{n}x{k}x{type}>
  {quantize}
  %a = gq.matmul_t {source}, %qa bias %ba
    : (tensor<?x{k}x{x_type}>, tensor<{n}x{k}x{type}>, tensor<{n}xbf16>) -> tensor<?x{n}xbf16>
  %b = gq.matmul_t {source}, %qb bias %bb
    : (tensor<?x{k}x{x_type}>, tensor<{n}x{k}x{type}>, tensor<{n}xbf16>) -> tensor<?x{n}xbf16>
  {body}
  func.return %y : tensor<?x{n}xbf16>
}}
"""

BINARY = '%{0} = fx.call "aten.{1}.Tensor"(%{2}, %{3}) : ({t}, {t}) -> {t}\n'
UNARY = '%{0} = fx.call "aten.{1}.default"(%{2}) : ({t}) -> {t}\n'


def fused_kernels(
    function: str, type_: str, n: int, k: int, target: str, native: bool = False
) -> list[KernelOp]:
    """Kernels of function(a) · b, with a and b two layers of x [M, K] bf16, for each bucket.

    Where x is not quantized for a matrix unit as the weights are, the residual r is added.
    """
    t, type_ = f"tensor<?x{n}xbf16>", f"!gq.block_scaled<{type_}>"
    body = UNARY.format("f", function, "a", t=t)
    body += BINARY.format("y" if native else "p", "mul", "f", "b", t=t)
    body += "" if native else BINARY.format("y", "add", "r", "p", t=t)
    types = f"tensor<?x{k}xbf16> -> tensor<?x{k}x{type_}>"
    cast = f'%xq = gq.qcast %x by "microscaling" "floor" : {types}' if native else ""
    x, x_type = ("%xq", type_) if native else ("%x", "bf16")
    text = FUSED.format(n=n, k=k, type=type_, body=body, quantize=cast, source=x, x_type=x_type)
    module = parse_ir(text)
    MergeLinears().apply(context(), module)
    for lower in (Legalize, AssignLayouts, SplitMBuckets, LowerToTile):
        lower(target).apply(context(), module)
    FuseEpilogues().apply(context(), module)
    module.verify()
    calls = [op for op in module.walk() if isinstance(op, CallOp)]
    assert all(isinstance(op.parent_op(), LaunchOp) for op in calls), "left outside of kernels"
    return [op for op in module.walk() if isinstance(op, KernelOp)]


@pytest.fixture(scope="session")
def build_fused() -> Build:
    return fused_kernels
