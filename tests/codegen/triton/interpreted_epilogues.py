"""Kernels with epilogues in Triton's interpreter, against float64.

The interpreter must be chosen before Triton is imported: test_interpreter.py runs this file in a
process of its own.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F
from xdsl.dialects.builtin import ModuleOp
from xdsl.parser import Parser

from gqc.codegen.triton import load
from gqc.codegen.triton.interpreter import interpreting
from gqc.dialects.gq import BlockScaledType
from gqc.dialects.interpret import interpreter
from gqc.dialects.text import context
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.concat import concat
from gqc.formats.layouts import LAYOUTS
from gqc.quantizers import rtn

assert interpreting(), "run through test_interpreter.py"

INT4 = "1x32 : f16 : ui4, zero = f16, zero_mode = rescale"
FUNCTIONS = {
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize(("bucket", "n", "rows"), [(0, 40, 5), (2, 136, 19)])
@pytest.mark.parametrize("function", FUNCTIONS)
def test_gate_and_up(build_fused, function: str, bucket: int, n: int, rows: int) -> None:
    """r + f(a)·b: float32 throughout, one rounding; the same as the dialect says."""
    kernel = build_fused(function, INT4, n, 96, "sm_90")[bucket]
    type_ = Parser(context(), f"!gq.block_scaled<{INT4}>").parse_type()
    assert isinstance(type_, BlockScaledType)
    generator = torch.Generator().manual_seed(n)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    weights = [rtn(random(n, 96), type_, "minmax") for _ in range(2)]
    biases, x, r = [random(n), random(n)], random(rows, 96), random(rows, n)
    parts = [*LAYOUTS["k_words"].pack(concat(weights, 1), 1), concat(biases, 1)]
    y = torch.full((rows, n), torch.nan, dtype=torch.bfloat16)
    load(kernel)(x, r, *parts, y)
    a, b = (
        F.linear(x.double(), w.dequantize(torch.float64).bfloat16().double(), bias.double())
        for w, bias in zip(weights, biases, strict=True)
    )
    exact = r.double() + FUNCTIONS[function](a) * b
    assert ((y.double() - exact).abs() <= exact.abs() * 2.0**-8 * 1.01 + 2e-4).all()
    again = torch.empty_like(y)
    run_kernel(interpreter(ModuleOp([kernel.clone()]), {}), kernel, [x, r, *parts, again])
    torch.testing.assert_close(again, y, rtol=2.0**-7, atol=1e-3)
