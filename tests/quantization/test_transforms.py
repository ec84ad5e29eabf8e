"""Input channels in another order: rows of the layers before move, and nothing at run time."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from quantization.models import Experts, gpt2, texts, uneven_gpt2, uneven_llama
from quantization.test_quantize import assert_same_models, decoded, logits
from torch import nn

import gqc
import gqc.quantization.transforms
from gqc.checkpoints.weights import Prescaled, Rotated, Transposed, dense
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.rotation import rotate
from gqc.quantizers import Statistics, microscaling, smoothquant
from gqc.schemes import parse_scheme

SYMMETRIC = "int4_g32_sym+gptq"


def last_layers(quantized: Any) -> set[str]:
    """Last parts of the names of layers whose input was reordered."""
    return {fact.layer.rpartition(".")[2] for fact in quantized.facts if fact.reordered}


@cache
def quantized_llama() -> Any:
    """A model of one block, quantized on `texts(2)`."""
    return gqc.quantize(uneven_llama(1), scheme=SYMMETRIC, calibration=texts(2))


def test_outputs_err_less_and_nothing_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs, quantized = uneven_llama(1), texts(2), quantized_llama()
    assert last_layers(quantized) == {"down_proj"} and "input reordered" in str(quantized)
    compiled = gqc.compile(model, inputs[0], weights=quantized, target="cpu")
    assert "gather_channels" not in compiled.ir("grouped")
    found, reference = compiled(**inputs[0]).logits, decoded(quantized).double()
    expected = logits(reference, inputs[0])
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)

    monkeypatch.setattr(gqc.quantization.transforms, "ORDERED", ())
    unordered = gqc.quantize(model, scheme=SYMMETRIC, calibration=inputs)
    assert not last_layers(unordered)
    exact = logits(model, inputs[0])
    before, after = ((logits(decoded(q), inputs[0]) - exact).norm() for q in (unordered, quantized))
    assert after < before
    before, after = (
        fact.output_sqnr or 0
        for q in (unordered, quantized)
        for fact in q.facts
        if "down_proj" in fact.layer
    )
    assert after > before + 1


def test_a_layer_before_that_is_kept_moves_too() -> None:
    model, inputs = uneven_llama(1), texts(2)
    scheme = {"*.gate_proj": "keep", "*.down_proj": "int8_g32+gptq", "*": "int4_g32"}
    quantized = gqc.quantize(model, scheme=scheme, calibration=inputs)
    assert last_layers(quantized) == {"down_proj"}
    name = "model.layers.0.mlp.{}_proj.weight"
    kept, exact = (
        dense(quantized.read(name.format("gate"))),
        model.get_parameter(name.format("gate")),
    )
    order = torch.tensor([(exact == row).all(1).nonzero().item() for row in kept])
    assert not torch.equal(order, torch.arange(128))
    down = model.get_parameter(name.format("down"))[:, order]
    assert (dense(quantized.read(name.format("down"))) - down).norm() < 0.01 * down.norm()
    found = gqc.quantize(
        model, scheme={**scheme, "*.down_proj": "int4_row+gptq"}, calibration=inputs
    )
    assert not last_layers(found)  # one scale for a row: the order is nothing to it


@pytest.mark.parametrize("format", ["gqc", "compressed-tensors"])
def test_files_hold_what_was_reordered(format: str, tmp_path: Path) -> None:
    model, quantized = uneven_llama(1), quantized_llama()
    gqc.save(quantized, tmp_path, format=format)
    loaded = gqc.load(tmp_path, model, target="cpu")
    compiled = gqc.compile(model, weights=quantized, target="cpu")
    assert torch.equal(logits(loaded, texts()[0]), logits(compiled, texts()[0]))


def test_rows_and_biases_that_moved_are_resumed(tmp_path: Path) -> None:
    model = uneven_gpt2()
    options: dict[str, Any] = {"scheme": SYMMETRIC, "calibration": texts(2), "resume": tmp_path}
    first = gqc.quantize(model, **options)
    assert last_layers(first) == {"c_proj"}
    assert_same_models(gqc.quantize(model, **options), first)
    name = "transformer.h.0.mlp.c_fc.bias"
    exact, moved = model.get_parameter(name), dense(first.read(name))
    assert not torch.equal(moved, exact) and torch.equal(moved.sort().values, exact.sort().values)
    error = (logits(decoded(first), texts()[0]) - logits(model, texts()[0])).norm()
    assert error < 0.1 * logits(model, texts()[0]).norm()


class Late(nn.Module):
    """A layer after the blocks reads what one before them made."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.early, self.late = nn.Linear(32, 64), nn.Linear(64, 32)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
        self.late.weight.data[:, ::2] *= 4

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        early = self.early(x)
        for layer in self.layers:
            x = layer(x).relu()
        return self.late(early * x.mean(-1, keepdim=True))


@pytest.mark.parametrize("how", ["gptq", "awq"])
def test_what_is_quantized_already_does_not_move(how: str) -> None:
    model, inputs = Late(), [torch.randn(50, 32) * torch.randn(32).exp()]
    quantized = gqc.quantize(model, scheme=f"int8_g32+{how}", calibration=inputs)
    exact = model(inputs[0])
    assert (decoded(quantized)(inputs[0]) - exact).norm() < 0.02 * exact.norm()
    assert not last_layers(quantized)
    late = next(fact for fact in quantized.facts if fact.layer == "late")
    assert late.reason == ("early.weight is quantized already" if how == "awq" else "")


def test_a_model_that_cannot_be_captured_keeps_its_order() -> None:
    class Branching(Experts):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.warns(UserWarning, match="nothing can be folded into the model"):
        quantized = gqc.quantize(
            Branching(), scheme="int4_g16+gptq", calibration=[torch.ones(5, 32)]
        )
    assert not last_layers(quantized)


class Residual(nn.Module):
    """A layer whose input, of unlike channels, is read elsewhere too: nothing takes its factors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.layer = nn.LayerNorm(64), nn.Linear(64, 64)
        self.norm.weight.data = torch.randn(64).mul(2).exp()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return x + self.layer(x)


@pytest.mark.parametrize(
    "text", ["w8a8_g32+smoothquant", "mxfp4+smoothquant+hadamard", "nvfp4_static+smoothquant"]
)
def test_factors_that_nothing_takes_divide_the_input_at_run_time(text: str, tmp_path: Path) -> None:
    model, x, scheme = Residual(), torch.randn(200, 64), parse_scheme(text)
    options: dict[str, Any] = {"scheme": text, "calibration": [x], "resume": tmp_path}
    quantized, again = gqc.quantize(model, **options), gqc.quantize(model, **options)
    reason = "scaled at run time: aten.layer_norm.default is read by aten.add.Tensor too"
    assert [fact.reason for fact in quantized.facts] == [reason]
    weight, same = quantized.read("layer.weight"), again.read("layer.weight")
    assert isinstance(weight, Prescaled) and isinstance(same, Prescaled)
    assert torch.equal(weight.factor, same.factor)

    with torch.no_grad():
        given, exact = model.norm(x), model(x).double()
    statistics, activation = Statistics.of(64), scheme.activation
    statistics.update(given)
    factor = smoothquant([model.layer.weight.detach()], scheme, statistics)
    assert factor is not None and activation is not None
    torch.testing.assert_close(weight.factor, 1 / factor)
    size, inner = 1, weight.weight
    if isinstance(inner, Rotated):
        size, inner = inner.block, inner.weight
    scale = quantized.input_scale("layer.weight")
    turned, rule = rotate(given / factor, size), activation.scale_rule
    rounded = microscaling(turned, activation.type(), rule, scale)
    products = rounded.dequantize(torch.float64) @ inner.dequantize(torch.float64).T
    expected = given.double() + products + model.layer.bias.detach().double()
    found = gqc.compile(model, x, weights=quantized, target="cpu")(x).double()
    noise = (expected - exact).norm()
    assert (found - expected).norm() < 0.02 * noise, "a code may tip"
    plain = gqc.quantize(
        model, **{**options, "scheme": text.replace("+smoothquant", ""), "resume": None}
    )
    before = gqc.compile(model, x, weights=plain, target="cpu")(x).double() - exact
    assert noise < 0.8 * before.norm()


def test_awq_has_no_factors_at_run_time() -> None:
    quantized = gqc.quantize(Residual(), scheme="int4_g32+awq", calibration=[torch.randn(200, 64)])
    assert isinstance(quantized.read("layer.weight"), BlockScaled)
    assert [f.reason for f in quantized.facts] == [
        "aten.layer_norm.default is read by aten.add.Tensor too"
    ]


def test_a_conv1d_is_scaled_at_run_time_too() -> None:
    model, inputs, name = gpt2(), texts(), "transformer.h.0.mlp.c_proj.weight"
    quantized = gqc.quantize(model, scheme="mxint8+smoothquant", calibration=inputs)
    weight, exact = quantized.read(name), model.get_parameter(name)
    assert isinstance(weight, Transposed) and isinstance(weight.weight, Prescaled)
    assert (dense(weight) - exact).norm() < 0.02 * exact.norm()
    found = gqc.compile(model, inputs[0], weights=quantized, target="cpu")(**inputs[0]).logits
    exact = logits(model, inputs[0])
    assert (found - exact).norm() < 0.02 * exact.norm()
