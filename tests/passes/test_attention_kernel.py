"""The kernel of attention: in the interpreter, and on every tier that runs here."""

from __future__ import annotations

import math

import pytest
import torch
from tiers import runs_here
from xdsl.dialects.builtin import ModuleOp

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS
from gqc.dialects.interpret import interpreter
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.tile import KernelOp
from gqc.dialects.tile_interpreter import run_kernel
from gqc.dialects.torch_types import ELEMENT_TYPES
from gqc.passes.attention_kernel import Heads, build_attention

DTYPES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
"""With the error that rounding of the result, and sums in f32, may make."""
ROOM, QUERIES, SHARED, SIZE = 96, 6, 2, 32


def kernel(dtype: torch.dtype, isa: str = "portable") -> KernelOp:
    heads = Heads(QUERIES, SHARED, SIZE, ROOM, ELEMENT_TYPES[dtype], 0.3)
    built = build_attention("attend", f"cpu_{isa}", heads)
    built.verify()
    (again,) = parse_ir(print_ir(built)).ops
    assert isinstance(again, KernelOp)
    return again


def arguments(dtype: torch.dtype, rows: int, count: int, spread: float) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(count)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    q = random(rows, QUERIES * SIZE) * spread
    keys, values = random(SHARED, ROOM, SIZE), random(SHARED, ROOM, SIZE)
    values[:, count + rows - 1 :] = 1e4  # of no weight
    return [q, torch.tensor([count]), keys, values, torch.full_like(q, math.nan)]


def exact(q: torch.Tensor, count: torch.Tensor, keys: torch.Tensor, values: torch.Tensor):
    """In fp64, row by row and head by head."""
    y = torch.empty(q.shape, dtype=torch.float64)
    for m, row in enumerate(q.double()):
        seen = int(count) + m
        for h, head in enumerate(row.view(QUERIES, SIZE)):
            shared = h * SHARED // QUERIES
            weights = torch.softmax(0.3 * keys[shared, :seen].double() @ head, 0)
            y[m, h * SIZE : (h + 1) * SIZE] = weights @ values[shared, :seen].double()
    return y


def check(y: torch.Tensor, inputs: list[torch.Tensor], tolerance: float) -> None:
    expected = exact(*inputs)  # type: ignore[arg-type]
    assert ((y.double() - expected).abs() <= tolerance * (1 + expected.abs())).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_interpreted(dtype: torch.dtype) -> None:
    *inputs, y = arguments(dtype, 3, 33, 1.0)
    module = ModuleOp([])
    run_kernel(interpreter(module, {}), kernel(dtype), [*inputs, y])
    check(y, inputs, DTYPES[dtype])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("isa", ISAS)
def test_on_the_cpu(isa: str, dtype: torch.dtype, emulated_arm: None) -> None:
    """Counts within and at the ends of steps; scores so far apart that weights underflow."""
    runs_here(isa)
    run = cpu.load(kernel(dtype, isa))
    for rows, count in ((1, 1), (1, 31), (1, 32), (1, 96), (2, 32), (4, 65)):
        for spread in (1.0, 50.0):
            *inputs, y = arguments(dtype, rows, count, spread)
            run(*inputs, y)
            check(y, inputs, DTYPES[dtype] + 2e-6 * spread)  # scores are rounded too
