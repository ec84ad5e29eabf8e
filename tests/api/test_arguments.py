"""Arguments that are nearly right: each error says what to give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.errors import GqcError

X = torch.randn(4, 64, generator=torch.Generator().manual_seed(0))


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).eval()


def compiled(*inputs: Any, **options: Any) -> Any:
    return gqc.compile(model(), *inputs, **{"target": "cpu", "scheme": "int8_g32", **options})


def test_one_pattern_to_ignore_is_a_name() -> None:
    rows = {row.layer: row.decision for row in compiled(ignore="0").report().rows}
    assert rows["0"] == "kept" != rows["2"]
    facts = {f.layer: f.scheme for f in gqc.quantize(model(), scheme="int8_g32", ignore="0").facts}
    assert facts == {"0": "", "2": "int8_g32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": 4}, "a scheme is a int: give a name as int4_g128"),
        ({"scheme": ["int8_g32"]}, "a scheme is a list: give a name"),
        ({"scheme": {"*": None}}, "a scheme is a NoneType: give a name"),
        ({"scheme": {0: "int8_g32"}}, "a pattern is a int: give the name of a module"),
        ({"ignore": [0]}, "a pattern is a int: give the name of a module"),
        ({"weights": "a/b"}, r"weights is a str: give .*open_checkpoint\('a/b'\), or .*gqc.load"),
        ({"weights": Path("a/b")}, r"weights is a \w*Path: give .*open_checkpoint\('a/b'\)"),
        ({"weights": model().state_dict()}, "weights is a OrderedDict: .*load_state_dict"),
        ({"weights": model()}, "weights is a Sequential: give a checkpoint"),
    ],
)
def test_schemes_and_weights(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GqcError, match=message):
        compiled(**options)


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (X, "calibration is a Tensor: give inputs of the model in a list"),
        ({"input": X}, "calibration is a dict: give inputs of the model in a list"),
        ("wikitext", "calibration is a str: give inputs of the model in a list"),
        (3, "calibration is a int: give inputs of the model in a list"),
        (["Hello"], "calibration input 0 is a str without a tensor: give what the model"),
        ([X, {}], "calibration input 1 is a dict without a tensor"),
    ],
    ids=["tensor", "dict", "text", "number", "texts", "nothing"],
)
def test_calibration(calibration: Any, message: str) -> None:
    scheme = "int4_g32+gptq"
    with pytest.raises(GqcError, match=message):
        compiled(scheme=scheme, calibration=calibration)
    with pytest.raises(GqcError, match=message):
        gqc.quantize(model(), scheme=scheme, calibration=calibration)
    with pytest.raises(GqcError, match=message):
        gqc.search(model(), calibration, budget_bits=4.5)


@pytest.mark.parametrize("given", [(), (X,)], ids=["layers", "whole"])
def test_a_compiled_model(given: tuple) -> None:
    done = compiled(*given)
    for call in (
        lambda: gqc.compile(done, scheme="int8_g32", target="cpu"),
        lambda: gqc.compile(done, X, scheme="int8_g32", target="cpu"),
        lambda: gqc.quantize(done, scheme="int8_g32"),
        lambda: gqc.search(done, [X], budget_bits=4.5),
    ):
        with pytest.raises(GqcError, match=r"compiled already|nn.Module itself"):
            call()


def test_a_quantized_model_is_weights() -> None:
    quantized: Any = gqc.quantize(model(), scheme="int8_g32")
    with pytest.raises(GqcError, match="a Quantized: give its model, and this as weights="):
        gqc.compile(quantized, target="cpu")


def test_lazy_layers_are_run_first() -> None:
    lazy = nn.Sequential(nn.LazyLinear(32)).eval()
    for call in (
        lambda: gqc.compile(lazy, scheme="int8_g32", target="cpu"),
        lambda: gqc.compile(lazy, X, scheme="int8_g32", target="cpu"),
        lambda: gqc.quantize(lazy, scheme="int8_g32"),
    ):
        with pytest.raises(GqcError, match=r"0.weight has no shape yet.*run the model on an input"):
            call()
    expected = lazy(X)
    done = gqc.compile(lazy, scheme="int8_g32", target="cpu")
    assert torch.allclose(done(X), expected, atol=0.05)
