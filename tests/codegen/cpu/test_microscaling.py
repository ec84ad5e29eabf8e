"""MXFP4 and MXFP6 weights: codes of floats under E8M0 scales, on every tier."""

from __future__ import annotations

import pytest
import torch

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS, host

TIERS = list(ISAS)
ELEMENTS = ("f4E2M1FN", "f6E2M3FN", "f6E3M2FN")


@pytest.fixture(params=TIERS)
def isa(request: pytest.FixtureRequest) -> str:
    if TIERS.index(request.param) < TIERS.index(host().name):
        pytest.skip(f"this CPU has no {request.param}")
    return request.param


@pytest.mark.parametrize("element", ELEMENTS)
def test_against_float64(linear, isa, element):
    """One row, the tail of a tile, and more than a tile take turns; N fills no tile."""
    turn = ELEMENTS.index(element) + TIERS.index(isa)
    for i, activation in enumerate(("f32", "bf16", "f16")):
        layer = linear(100, 128, f"1x32 : f8E8M0FNU : {element}", activation, i == 2)
        layer.check(isa, (1, 2, 7)[(turn + i) % 3])


@pytest.mark.parametrize(
    ("element", "activation", "x"),
    [
        *((element, "f32", x) for element in ELEMENTS for x in (2.0**-5, 2.0**20)),
        ("f4E2M1FN", "bf16", 2.0**20),
    ],
)
def test_every_scale_is_exact(linear, isa, element, activation, x):
    """y[0, n] = x · code[n] · 2^(n − 127), n from 0 to 254, without any rounding: subnormal scales
    and results, the greatest ones, infinity beyond; byte 255 is NaN."""
    layer = linear(256, 32, f"1x32 : f8E8M0FNU : {element}", activation)
    layer.weight.scale = torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu)[:, None]
    inputs, *parts, y = layer.arguments(1)
    inputs[:] = 0
    inputs[0, 5] = x
    cpu.load(layer.kernel(isa, 1), isa)(inputs, *parts, y)
    codes = torch.tensor(layer.element.format.values, dtype=torch.float64)
    powers = torch.tensor([2.0**e for e in (*range(-127, 128), torch.nan)], dtype=torch.float64)
    expected = (codes[layer.weight.codes[:, 5].long()] * powers * x).to(y.dtype)
    torch.testing.assert_close(y[0], expected, rtol=0, atol=0, equal_nan=True)
