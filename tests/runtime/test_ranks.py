"""A compiled layer takes inputs of one to four dimensions, whatever they go through."""

from __future__ import annotations

from math import prod
from typing import Any

import pytest
import torch
from checkpoints.memory import Memory, layer
from torch import nn

import gqc
from gqc.checkpoints.weights import Permuted, Prescaled, Rotated, dense
from gqc.formats.rotation import rotate
from gqc.quantizers import microscaling

N, K = 24, 64
SHAPES = [(K,), (5, K), (K, K), (2, 5, K), (K, 2, K), (1, 3, 2, K), (2, K, 1, K)]
"""Of inputs: one that has K elsewhere too takes a gather along another dimension in silence."""
EMPTY = [(0, K), (2, 0, K)]

CHANGES = {
    "none": lambda weight: weight,
    "gather": lambda weight: Permuted(weight, torch.randperm(K)),
    "scale": lambda weight: Prescaled(weight, torch.rand(K) + 0.5),
    "rotate": lambda weight: Rotated(weight, 32),
}
SCHEMES = ("int4_g32", "w4a8_g32", "nvfp4", "nvfp4_static")


def stored(scheme: str) -> Memory:
    """A layer for each change, whose weight is for inputs that are changed."""
    torch.manual_seed(0)
    result = Memory({})
    for name, change in CHANGES.items():
        source = layer(scheme, N, K, name)
        source.weights[f"{name}.weight"] = change(source.weights[f"{name}.weight"])
        del source.weights["model.norm.weight"]
        result.weights |= source.weights
        result.activations |= source.activations
        result.scales |= source.scales
    return result


def expected(source: Memory, name: str, x: torch.Tensor) -> torch.Tensor:
    """What a layer gives for x [M, K], in float64, but for the inputs, which are quantized."""
    weight: Any = source.weights[f"{name}.weight"]
    changed = {
        "none": lambda: x,
        "gather": lambda: x[:, weight.order],
        "scale": lambda: x * weight.factor,
        "rotate": lambda: rotate(x, weight.block),
    }
    x = changed[name]()
    codes = dense(weight if name == "none" else weight.weight, torch.float64)
    if (scheme := source.activation(f"{name}.weight")) is not None:
        scale = source.input_scale(f"{name}.weight")
        quantized = microscaling(x, scheme.type(), scheme.scale_rule, scale)
        x = quantized.dequantize(torch.float64)
    bias: Any = source.weights[f"{name}.bias"]
    return x.double() @ codes.T + bias.double()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_the_same_in_any_shape(scheme: str) -> None:
    source = stored(scheme)
    model = nn.ModuleDict({name: nn.Linear(K, N, device="meta") for name in CHANGES})
    compiled = gqc.compile(model, weights=source, target="cpu")
    for name, layer_ in compiled.items():
        for shape in SHAPES:
            x = torch.randn(prod(shape[:-1]), K)
            y, wanted = layer_(x.view(shape)), expected(source, name, x)
            assert y.shape == (*shape[:-1], N)
            torch.testing.assert_close(y.view(-1, N).double(), wanted, rtol=1e-5, atol=1e-5)
        for shape in EMPTY:
            assert layer_(torch.zeros(shape)).shape == (*shape[:-1], N)
