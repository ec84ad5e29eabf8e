"""AWQ and SmoothQuant: the factor is the best of its grid, by outputs computed in float64."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from quantizers.inputs import correlated, heavy, output_error, statistics_of

from gqc.formats.rotation import rotate
from gqc.quantizers import Statistics, awq, microscaling, quantize, smoothquant
from gqc.quantizers.factors import quantized_inputs
from gqc.schemes import parse_scheme


def grid(x: torch.Tensor, w: torch.Tensor) -> list[torch.Tensor]:
    """The factors of the papers, as they are written, for α of 0, 0.05, … 0.95, and none."""
    found = [x ** (i / 20) / w ** (1 - i / 20) for i in range(20)]
    return [torch.ones_like(x), *(f / (f.max() * f.min()).sqrt() for f in found)]


@pytest.mark.parametrize(
    "text", ["int3_g32+awq", "int4_g32_sym+awq+rtn", "w4a16_nvfp4+awq", "int4_g32+awq+gptq"]
)
def test_awqs_factor_is_the_best_of_its_grid(text: str) -> None:
    scheme, x = parse_scheme(text), correlated(600, 64)
    weights, statistics = [heavy(24, 64), heavy(40, 64)], statistics_of(x)
    trial = replace(scheme, quantizer="scale_search") if "gptq" in text else scheme

    def error(factor: torch.Tensor) -> float:
        found = statistics.scaled(1 / factor)
        return sum(
            output_error(quantize(w * factor, trial, found).dequantize() / factor, w, x)
            for w in weights
        )

    blocks = torch.cat(weights).abs().unflatten(1, (-1, scheme.group or 64))
    size = (blocks / blocks.amax(-1, keepdim=True)).flatten(1).mean(0)
    errors = [error(factor) for factor in grid(x.abs().mean(0), size)]
    chosen = awq(weights, scheme, statistics)
    assert chosen is not None
    assert error(chosen) == pytest.approx(min(errors), rel=1e-3)
    assert error(chosen) < 0.97 * errors[0]


@pytest.mark.parametrize("text", ["mxfp4+smoothquant", "nvfp4_static+smoothquant"])
@pytest.mark.parametrize("rotated", [False, True])
def test_smoothquants_factor_is_the_best_of_its_grid(text: str, rotated: bool) -> None:
    if rotated and "static" in text:
        return
    scheme = parse_scheme(f"{text}+hadamard" if rotated else text)
    x, weight, size = correlated(200, 64), heavy(24, 64), 32 if rotated else 1
    statistics, activation = statistics_of(x), scheme.activation
    assert activation is not None
    whole = x.abs().amax(0)

    def error(factor: torch.Tensor) -> float:
        inputs, exact = rotate(x / factor, size), rotate(weight * factor, size)
        static = (whole / factor).max() / (448 * 6) if activation.static else None
        rounded = microscaling(inputs, activation.type(), activation.scale_rule, static)
        found = microscaling(exact, scheme.type(), scheme.scale_rule).dequantize(torch.float64)
        difference = rounded.dequantize(torch.float64) @ found.T - x.double() @ weight.double().T
        return float(difference.square().sum(1).mean())

    errors = [error(factor) for factor in grid(whole, weight.abs().amax(0))]
    chosen = smoothquant([weight], scheme, statistics)
    assert chosen is not None
    assert error(chosen) == pytest.approx(min(errors), rel=1e-3)
    assert error(chosen) < 0.97 * errors[0]


def test_a_static_scale_is_that_of_all_inputs() -> None:
    activation = parse_scheme("nvfp4_static").activation
    assert activation is not None
    x = correlated(2000, 32)  # more than the sample holds
    statistics = statistics_of(x)
    scale = x.abs().max() / (448 * 6)
    expected = microscaling(statistics.sample, activation.type(), "amax", scale).dequantize()
    assert torch.equal(quantized_inputs(statistics, activation), expected)


def test_without_inputs_there_is_no_factor() -> None:
    scheme, weight = parse_scheme("int4_g32+awq"), heavy(8, 64)
    for unknown in (Statistics.of(64), statistics_of(torch.zeros(9, 64))):
        assert awq([weight], scheme, unknown) is None


def test_a_channel_of_zeros_gets_a_finite_factor() -> None:
    scheme, weight, x = parse_scheme("int3_g32+awq"), heavy(8, 64), correlated(200, 64)
    x[:, 3], weight[:, 5], weight[:, 32:] = 0, 0, 0
    factor = awq([weight], scheme, statistics_of(x))
    assert factor is not None and (factor > 0).all() and factor.isfinite().all()
