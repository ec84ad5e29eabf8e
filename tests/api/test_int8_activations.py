"""8-bit integer activations, end to end: what runs, what it costs, what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.errors import GqcError
from gqc.quantizers import microscaling, quantize
from gqc.schemes import Scheme, preset

UNIT = {torch.float32: 2.0**-23, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}
GROUPS_APART = Scheme("si4", 64, activation=preset("w4a8_g32").activation)
"""Decoded and multiplied as floats, for there is no dot of bytes."""


def fake(x: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """An activation as it is quantized, in float64."""
    assert scheme.activation is not None
    type_ = scheme.activation.type(x.ndim)
    return microscaling(x, type_, scheme.activation.scale_rule).dequantize(torch.float64)


def mlp() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(128, 192), nn.SiLU(), nn.Linear(192, 40))


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("scheme", ["w4a8_g32", "w8a8_g128", "w4a8_g64_asym", GROUPS_APART])
def test_a_layer(scheme: str | Scheme, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(128, 70).to(dtype), torch.randn(2, 3, 128).to(dtype)
    y = gqc.compile(layer, scheme=scheme, target="cpu")(x)
    how = scheme if isinstance(scheme, Scheme) else preset(scheme)
    weight = quantize(layer.weight.detach(), how).dequantize(torch.float64)
    expected = nn.functional.linear(fake(x, how), weight, layer.bias.detach().double())
    bound = UNIT[dtype] * expected.abs() + 2e-6
    assert y.dtype == dtype and ((y.double() - expected).abs() <= bound).all()


@pytest.mark.parametrize("scheme", ["w4a8_g32", "w8a8_g64_asym"])
def test_a_model_whose_quantizer_computes_its_input(scheme: str) -> None:
    """SiLU runs in the kernel that quantizes: sums of floats in another order move few codes."""
    model, x = mlp(), torch.randn(5, 128)
    compiled = gqc.compile(model, x, scheme=scheme, target="cpu")
    assert any(kernel.name.startswith("quantize_silu_f32_si8") for kernel in compiled.kernels)
    how = preset(scheme)
    hidden = x
    for layer in (model[0], model[2]):
        weight = quantize(layer.weight.detach(), how).dequantize(torch.float64)
        hidden = nn.functional.linear(fake(hidden, how), weight, layer.bias.double())
        hidden = nn.functional.silu(hidden) if layer is model[0] else hidden
    error = (compiled(x).double() - hidden).norm() / hidden.norm()
    assert error < 1e-3, "int8 activations alone err by 4e-3 and more"


def cost(x: torch.Tensor, weight: torch.Tensor, scheme: Scheme) -> float:
    """10·log10(Σy² / Σ(y − ŷ)²) of outputs, in float64."""
    exact, found = x.double() @ weight.double().T, fake(x, scheme) @ weight.double().T
    return 10 * math.log10(exact.square().sum() / (exact - found).square().sum())


@pytest.mark.parametrize(
    ("scheme", "how"),
    [
        ("w4a8_g32", "example_inputs"),
        ("w4a8_g32", "calibration"),
        ("mxfp8", "example_inputs"),
        ("nvfp4_static", "calibration"),
    ],
)
def test_the_report_tells_what_quantized_inputs_cost(scheme: str, how: str) -> None:
    model, x = mlp(), torch.randn(50, 128)
    given: dict[str, Any] = {how: x if how == "example_inputs" else [x[:20], x[20:]]}
    report = gqc.compile(model, scheme=scheme, target="cpu", **given).report()
    found = {row.layer: row.input_sqnr for row in report.rows}
    expected = cost(x, model[0].weight.detach(), preset(scheme))
    assert found["0"] == pytest.approx(expected, abs=0.01)
    assert f"{expected:.1f}" in str(report) and found["2"] is not None


def test_without_inputs_the_report_says_what_would_tell() -> None:
    report = gqc.compile(mlp(), scheme="w4a8_g32", target="cpu").report()
    assert {row.input_sqnr for row in report.rows} == {None}
    assert "calibration= or example_inputs=" in str(report)
    assert "vpdpbusd" in str(report) or report.target != "cpu_avx512bf16"


def test_gpus_refuse_them_with_a_remedy() -> None:
    with pytest.raises(GqcError, match=r"no dot of si8 by si4.*choose a scheme of weights alone"):
        gqc.compile(mlp(), scheme="w4a8_g32", target="sm_90")


def test_a_group_that_does_not_divide_names_the_layers() -> None:
    with pytest.raises(GqcError, match=r"2: weight \[40, 192\], group 128"):
        gqc.compile(mlp(), scheme="w4a8_g128", target="cpu")
