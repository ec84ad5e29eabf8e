"""MX and NVFP4 weights: codes under E8M0 or E4M3 scales, and a tensor scale, on every tier."""

from __future__ import annotations

import pytest
import torch
from tiers import runs_here

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS

TIERS = list(ISAS)
ELEMENTS = ("f4E2M1FN", "f6E2M3FN", "f6E3M2FN", "f8E4M3FN", "f8E5M2", "si8")
FORMATS = (
    *(f"1x32 : f8E8M0FNU : {element}" for element in ELEMENTS),
    "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    "1x16 : f8E4M3FN : f4E2M1FN",
)


@pytest.fixture(params=TIERS)
def isa(request: pytest.FixtureRequest) -> str:
    runs_here(request.param)
    return request.param


@pytest.mark.parametrize("format", FORMATS)
def test_against_float64(linear, isa, format):
    """One row, the tail of a tile, and more than a tile take turns; N fills no tile. Results of
    E5M2 overflow f16."""
    turn = FORMATS.index(format) + TIERS.index(isa)
    for i, activation in enumerate(("f32", "bf16", "f32" if "f8E5M2" in format else "f16")):
        layer = linear(100, 128, format, activation, i == 2)
        layer.check(isa, (1, 2, 7)[(turn + i) % 3])


@pytest.mark.parametrize("activation", ["f32", "bf16"])
@pytest.mark.parametrize("format", [f for f in FORMATS if "f8E4M3FN" in f or "f8E5M2" in f])
def test_every_code_is_exact(linear, isa, format, activation):
    """y[0, n] = the value of the n-th of all codes, of elements or scales: -0, subnormals, inf and
    NaN too."""
    layer = linear(256, 32, format, activation)
    weight, codes = layer.weight, torch.arange(256, dtype=torch.uint8)[:, None]
    if str(layer.element.scale) == "f8E4M3FN":
        weight.scale = codes.expand(256, 2).contiguous().view(torch.float8_e4m3fn)
        weight.codes[:, 5] = 2  # 1.0
        weight.tensor_scale = weight.tensor_scale and torch.tensor(2.0)
    else:
        weight.scale = torch.full((256, 1), 127, dtype=torch.uint8).view(torch.float8_e8m0fnu)
        weight.codes[:, 5:6] = codes
    weight.codes[:, :5], weight.codes[:, 6:] = 0, 0
    x, *parts, y = layer.arguments(1)
    x[:] = torch.arange(32) == 5
    cpu.load(layer.kernel(isa, 1), isa)(x, *parts, y)
    expected = weight.dequantize()[:, 5].to(y.dtype)
    torch.testing.assert_close(y[0], expected, rtol=0, atol=0, equal_nan=True)


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
