"""Small models of other architectures: right, and treated alike in both ways to compile them."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.frontend.graph_modules import GroupedQuantLinear

QUICK = ("deberta_v2", "siglip_vision")
"""A weight that several products read; packed attention."""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", QUICK)
def test_an_architecture(benchmark: Callable[[str], ModuleType], name: str) -> None:
    """Captured whole it is right at other sizes, and the same layers are quantized as by layers."""
    trial = benchmark("architectures").Trial(benchmark("small_architectures").ARCHITECTURES[name])
    trial.whole()


def test_what_fails_is_said(benchmark: Callable[[str], ModuleType], monkeypatch: Any) -> None:
    """A model whose outputs are off, one that torch does not take either, and the page of both."""
    script = benchmark("architectures")
    kind = benchmark("small_architectures").Architecture

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(16, 16)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x) if x.sum() > -1e9 else x

    architecture = kind(Branch, lambda batch, length: {"x": torch.ones(batch, 16)})
    monkeypatch.setitem(script.ARCHITECTURES, "branch", architecture)
    row = script.row_of("branch")
    assert row["by layers"] == "yes" and row["export"] == "torch fails"
    assert row["whole"].startswith("GqcError: cannot capture Branch") and "generate" not in row
    monkeypatch.setattr(script, "quantized_reference", lambda model: gqc_free(model))
    assert row["bf16"] == "yes"
    assert script.row_of("branch")["by layers"].startswith("AssertionError: outputs are off by")
    text = script.page({"branch": row})
    assert "| branch | ✓ | ✗ 1 | — | *torch* |" in text and "\n1. branch, whole: GqcError" in text


def gqc_free(model: nn.Module) -> nn.Module:
    """A model of other weights."""
    torch.manual_seed(1)
    other = type(model)().to(next(model.parameters()).dtype)
    return other.eval()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["mt5", "switch", "wavlm"])
def test_models_that_ask_weights_for_their_dtype(
    benchmark: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """They decode nothing by that."""
    architecture = benchmark("small_architectures").ARCHITECTURES[name]
    model: Any = gqc.compile(architecture.build(), scheme="int8_g16", target="cpu")
    decoded: list[str] = []
    monkeypatch.setattr(GroupedQuantLinear, "decoded", lambda layer: decoded.append(repr(layer)))
    with torch.no_grad():
        model(**architecture.inputs(2, 10))
    assert decoded == []
