"""Functions that kernels compute by series, on every tier that runs here."""

from __future__ import annotations

import pytest
import torch
from tiers import runs_here

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS
from gqc.dialects.text import parse_ir
from gqc.dialects.tile import KernelOp

TIERS = list(ISAS)

KERNEL = """
tile.kernel @f(%x: memref<?x64xf32>, %y: memref<?x64xf32>) tile<1, 64>
  attributes {{target = "cpu_{isa}"}} {{
  %c0 = arith.constant 0 : index
  %m = tile.program_id 0
  %t = tile.load %x[%m, %c0] : memref<?x64xf32> -> vector<1x64xf32>
  %r = {function} %t : vector<1x64xf32>
  tile.store %r, %y[%m, %c0] : vector<1x64xf32>, memref<?x64xf32>
}}
"""


def apply(function: str, isa: str, x: torch.Tensor) -> torch.Tensor:
    kernel = parse_ir(KERNEL.format(function=function, isa=isa)).body.block.first_op
    assert isinstance(kernel, KernelOp)
    x = x.reshape(-1, 64).contiguous()
    y = torch.empty_like(x)
    cpu.load(kernel)(x, y)
    return y


@pytest.fixture(params=TIERS)
def isa(request: pytest.FixtureRequest) -> str:
    runs_here(request.param)
    return request.param


def test_exp(isa):
    """Within two ulps wherever the result is normal, a subnormal unit below; and at the ends."""
    x = torch.linspace(-110, 100, 1 << 20)
    exact, found = x.double().exp(), apply("math.exp", isa, x).view(-1).double()
    inside = exact < torch.finfo(torch.float32).max
    error = (found - exact).abs() / exact.clamp(min=2.0**-126)
    assert error[inside].max() <= 2 * 2.0**-23
    assert (found[~inside] == torch.inf).all()
    ends = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30]
    found = apply("math.exp", isa, torch.tensor(ends).repeat(64))[0, : len(ends)]
    expected = torch.tensor([1.0, 1.0, torch.inf, 0.0, torch.nan, torch.inf, 0.0])
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


def test_rsqrt(isa):
    x = torch.rand(1 << 16).double().mul(80).sub(40).exp2().float()
    found = apply("math.rsqrt", isa, x).view(-1).double()
    assert ((found - x.double().rsqrt()) * x.double().sqrt()).abs().max() <= 2.0**-23


@pytest.mark.parametrize("name", ["erf", "tanh"])
def test_odd_functions(isa, name):
    """Within two ulps everywhere, across the joint of two series; and at the ends."""
    x = torch.cat([torch.linspace(-12, 12, 1 << 19), torch.randn(1 << 16) * 2.0**-20])
    exact, found = getattr(x.double(), name)(), apply(f"math.{name}", isa, x).view(-1).double()
    assert ((found - exact).abs() <= 2 * 2.0**-23 * exact.abs()).all()
    ends = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 1e30, -1e30]).repeat(64)
    found = apply(f"math.{name}", isa, ends).view(-1)
    torch.testing.assert_close(found, getattr(ends, name)(), rtol=0, atol=0, equal_nan=True)
    assert found[1].signbit()
