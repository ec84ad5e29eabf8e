"""Routers of experts are kept, however a model is compiled, unless a scheme names them."""

from __future__ import annotations

from typing import Any

import pytest
import small_models
import torch
from torch import nn

import gqc
from gqc.errors import GqcError

TOKENS = torch.randint(0, 96, (2, 7), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """Experts behind a router that is a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(64, 4, bias=False)
        self.experts = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weights = self.router(x).softmax(-1)
        parts = torch.stack([expert(x) for expert in self.experts], -1)
        return (parts * weights[..., None, :]).sum(-1)


def quantized(compiled: Any) -> set[str]:
    return {row.layer for row in compiled.report().rows if row.decision != "kept"}


def reasons(compiled: Any) -> dict[str, str]:
    return {row.layer.removesuffix(".weight"): row.reason for row in compiled.report().rows}


def test_routers_are_kept_in_both_ways() -> None:
    model = small_models.experts("qwen3_moe", num_hidden_layers=1)
    name = "model.layers.0.mlp.gate"
    ways = [
        gqc.compile(model, x, scheme="int8_g32", ignore=["*.gate"], target="cpu")
        for x in (None, TOKENS)
    ]
    assert quantized(ways[0]) == quantized(ways[1]) != set()
    assert reasons(ways[0])[name].startswith("a router of experts: a parameter of")
    assert reasons(ways[1])[name] == "ignored by pattern *.gate"


def test_a_scheme_may_name_a_router() -> None:
    model = small_models.experts("gpt_oss", num_hidden_layers=1)
    scheme = {"*.router": "int8_g64", "*": "int8_g32"}
    whole = gqc.compile(model, TOKENS, scheme=scheme, target="cpu")
    assert "model.layers.0.mlp.router" in quantized(whole)
    with pytest.raises(GqcError, match=r"'\*.router': only routers .* give example inputs"):
        gqc.compile(model, scheme=scheme, target="cpu")


def test_a_router_that_is_a_linear_layer() -> None:
    model, x = Block().eval(), torch.randn(3, 64)
    for example in (None, x):
        compiled = gqc.compile(model, example, scheme="int8_g32", target="cpu")
        assert quantized(compiled) == {f"experts.{e}" for e in range(4)}
        assert reasons(compiled)["router"].startswith("a router of experts is kept by default")
        scheme = {"router": "int8_row", "*": "int8_g32"}
        named = gqc.compile(model, example, scheme=scheme, target="cpu")
        assert "router" in quantized(named)
        with torch.no_grad():
            assert torch.allclose(named(x), model(x), atol=0.05)
    facts = {fact.layer: fact for fact in gqc.quantize(model, scheme="int8_g32").facts}
    assert not facts["router"].scheme and "a router of experts" in facts["router"].reason
