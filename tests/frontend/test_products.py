"""Subclasses of nn.Linear: those that compute the same product are linear layers too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear

import gqc
from gqc.frontend.products import forward_name, is_product


class Renamed(nn.Linear):
    pass


class Spelled(nn.Linear):
    def forward(self, hidden):
        rows = hidden.reshape(-1, self.in_features) @ self.weight.transpose(0, 1)
        rows = rows if self.bias is None else self.bias + rows
        return rows.view(*hidden.shape[:-1], self.out_features)


class Twice(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class BiasTwice(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y if self.bias is None else y + self.bias


class Clipped(nn.Linear):
    def forward(self, x):
        return super().forward(x.clamp(-10, 10))


class OtherWay(nn.Linear):
    def forward(self, x):
        return x @ self.weight


class OfValues(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


class OfRank(nn.Linear):
    def forward(self, x):
        return super().forward(x) if x.ndim == 2 else super().forward(x.flip(1))


class WithoutBias(nn.Linear):
    def forward(self, x):
        return x @ self.weight.T


class Pair(nn.Linear):
    def forward(self, x):
        return super().forward(x), self.bias


class MoreInputs(nn.Linear):
    def forward(self, x, scale=1.0):
        return super().forward(x) * scale


class Rounded(nn.Linear):
    def forward(self, x):
        return super().forward(x.bfloat16().float())


class Scaled(nn.Linear):
    factor = 2.0

    def forward(self, x):
        y = super().forward(x)
        return y if self.factor == 1 else y * self.factor


class Called(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [FalconLinear, Renamed, Spelled])
def test_the_same_product(kind: type[nn.Linear], bias: bool) -> None:
    assert is_product(kind(32, 32, bias=bias))
    model = nn.Sequential(kind(32, 48, bias=bias)).eval()
    for device in ("meta", "cpu"):
        assert is_product(kind(32, 48, bias=bias, device=device).bfloat16())
    compiled: Any = gqc.compile(model, scheme="int8_g32", target="cpu")
    assert [row.decision for row in compiled.report().rows] == ["emulated"]
    x = torch.randn(2, 3, 32)
    with torch.no_grad():
        assert torch.allclose(compiled[0](**{str(forward_name(model[0])): x}), model(x), atol=0.05)


OTHERS = [Twice, Clipped, OtherWay, OfValues, OfRank, Pair, MoreInputs, Rounded, Scaled, Called]


@pytest.mark.parametrize("kind", OTHERS)
def test_another_product(kind: type[nn.Linear]) -> None:
    assert not is_product(kind(32, 32)) and not is_product(kind(32, 32, bias=False))


@pytest.mark.parametrize("kind", [BiasTwice, WithoutBias])
def test_another_bias(kind: type[nn.Linear]) -> None:
    assert not is_product(kind(32, 32)) and is_product(kind(32, 32, bias=False))


def test_an_attribute_makes_a_difference() -> None:
    layer = Scaled(32, 32)
    assert not is_product(layer)
    layer.factor = 1.0
    assert is_product(layer)
    layer.factor = 3.0
    assert not is_product(layer)
