"""Fused epilogues: the same module before and after."""

from __future__ import annotations

from typing import cast

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from xdsl.context import Context
from xdsl.dialects.builtin import VectorType
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq, tile
from gqc.dialects.fx import CallOp
from gqc.dialects.interpret import run
from gqc.frontend.capture import capture
from gqc.frontend.import_fx import import_fx
from gqc.frontend.signature import Imported
from gqc.passes.fuse_epilogues import FuseEpilogues
from gqc.passes.lower_to_tile import LowerToTile
from gqc.passes.pipeline import pipeline, run_stages


class Mlp(nn.Module):
    """A gated block with a residual, and a plain one with an activation and a factor a channel."""

    def __init__(self, n: int):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(64, n), nn.Linear(64, n), nn.Linear(n, 64)
        self.fc, self.factor = nn.Linear(64, 40), nn.Parameter(torch.rand(40))

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        h = x + self.down(F.silu(self.gate(x)) * self.up(x))
        return h, F.gelu(self.fc(h)) * self.factor


class Gate(Mlp):
    """The gated product alone."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
        return (F.silu(self.gate(x)) * self.up(x),)


def lowered(target: str, n: int, scheme: str, dtype: torch.dtype, kind: type[Mlp] = Mlp):
    """The module as `lower-to-tile` leaves it, its weights, and an input."""
    torch.manual_seed(0)
    model, x = kind(n).to(dtype).eval(), torch.randn(2, 3, 64, dtype=dtype)
    imported = import_fx(capture(model, (x,)))
    *stages, kernels = pipeline((f"*={scheme}",), target)
    before = [p for p in kernels.passes if p.name in ("lower-quantizers", LowerToTile.name)]
    run_stages(imported.module, stages)
    for pass_ in before:
        pass_.apply(Context(), imported.module)
    return imported, x


def calls_outside_kernels(imported: Imported) -> list[CallOp]:
    """Calls that torch runs; those that launches say they do are in their kernels."""
    calls = [op for op in imported.module.walk() if isinstance(op, CallOp)]
    return [op for op in calls if not isinstance(op.parent_op(), gq.LaunchOp)]


@pytest.mark.parametrize(
    ("target", "n", "scheme", "fused"),
    [
        ("cpu_avx512", 96, "int4_g32", 3),
        ("cpu_avx2", 40, "int4_row", 3),
        ("cpu_avx512", 40, "int4_row", 2),  # 40 rows are no panels of 32: gate and up stay
        ("sm_90", 40, "int8_row_sym", 3),
        ("sm_100", 96, "mxfp8", 2),  # SiLU·mul is in the quantizer's kernel
    ],
)
def test_the_same_answer(target, n, scheme, fused):
    dtype = torch.bfloat16 if target.startswith("sm") else torch.float32
    imported, x = lowered(target, n, scheme, dtype)
    before = run(imported.module, imported.weights, (x,))
    calls = calls_outside_kernels(imported)
    FuseEpilogues().apply(Context(), imported.module)
    imported.module.verify()
    after = run(imported.module, imported.weights, (x,))
    tolerance = 2e-5 if dtype == torch.float32 else 2e-2
    for old, new in zip(before, after, strict=True):
        torch.testing.assert_close(new, old, rtol=tolerance, atol=tolerance)
    assert len(calls_outside_kernels(imported)) < len(calls)
    launches = [op for op in imported.module.walk() if isinstance(op, gq.LaunchOp)]
    names = [name for op in launches if op.parts for _, name in op.buckets]
    words = ("silu_mul_", "add_", "gelu_mul_")
    assert sum(any(f"_{word}" in name for name in names) for word in words) == fused
    kernels = {op.sym_name.data for op in imported.module.ops if isinstance(op, tile.KernelOp)}
    assert kernels == {name for op in launches for _, name in op.buckets}


@pytest.mark.parametrize("target", ["sm_100", "sm_120", "gfx950"])
def test_codes_that_a_matrix_unit_multiplies_alternate_too(target):
    """Rows of codes and, wherever the unit wants them, of their scales."""
    imported, x = lowered(target, 96, "mxfp8", torch.bfloat16, Gate)
    (before,) = run(imported.module, imported.weights, (x,))
    FuseEpilogues().apply(Context(), imported.module)
    assert not calls_outside_kernels(imported)
    (after,) = run(imported.module, imported.weights, (x,))
    torch.testing.assert_close(after, before, rtol=2e-2, atol=2e-2)


def test_a_kernel_that_reads_its_result_is_left_alone():
    """One that adds to what it stored before, as over several parts of K."""
    imported, _ = lowered("cpu_avx512", 96, "int4_g32", torch.float32)
    for kernel in [op for op in imported.module.ops if isinstance(op, tile.KernelOp)]:
        y = kernel.body.block.args[-1]
        (store,) = [op for op in kernel.walk() if isinstance(op, tile.StoreOp) and op.target is y]
        load = tile.LoadOp(y, store.offsets, cast(VectorType, store.value.type))
        Rewriter.insert_op(load, InsertPoint.before(store))
    text = str(imported.module)
    FuseEpilogues().apply(Context(), imported.module)
    assert str(imported.module) == text
