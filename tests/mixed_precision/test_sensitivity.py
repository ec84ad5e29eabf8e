"""Sensitivities against the same computed on copies of the model, one weight exchanged."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import small_models
import torch
from torch import nn

from gqc.errors import GqcError
from gqc.frontend.capture import split_inputs
from gqc.mixed_precision.search import candidates_of, untie
from gqc.mixed_precision.sensitivity import Candidates, sensitivities
from gqc.quantization.layers import layers_of
from gqc.quantizers import quantize
from gqc.schemes import parse_scheme

SCHEMES = ("int2_g32", "int4_g32+hqq", "w4a16_mxfp4")


class Plain(nn.Module):
    """Two layers and no blocks, of which one may be called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(self.down(self.up(x).tanh())).tanh())


def llama(tied: bool) -> nn.Module:
    return small_models.llama(tie_word_embeddings=tied)


def gpt2() -> nn.Module:
    return small_models.gpt2()


class Tied(nn.Module):
    """Blocks of which the first and the last have one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(3))
        last: Any = self.layers[2]
        last[0].weight = self.layers[0].get_parameter("0.weight")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


MODELS = {
    "plain": Plain,
    "llama": lambda: llama(False),
    "llama_tied": lambda: llama(True),
    "gpt2": gpt2,
    "tied_blocks": Tied,
}
IDS = torch.arange(24).reshape(2, 12) * 7 % 96


def case(name: str) -> tuple[nn.Module, list[Any]]:
    """A model, and its inputs."""
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    if name in ("plain", "tied_blocks"):
        return model, [torch.randn(5, 64), torch.randn(2, 64)]
    for parameter in model.parameters():  # logits that differ
        parameter.data *= 4 if parameter.ndim == 2 else 1
    return model, [IDS, {"input_ids": IDS[:1, :7]}]


def weights_of(model: nn.Module, lm_head: bool = True) -> list[Candidates]:
    return candidates_of(layers_of(model, ("*=int8_row",), lm_head), SCHEMES)


def expected(model: nn.Module, inputs: list[Any], weight: Candidates, scheme: str) -> float:
    """By copies of the model in float64: the mean KL divergence, or the squared change."""
    changed = copy.deepcopy(model)
    matrix = weight.layers[0].matrix()
    values = quantize(matrix, parse_scheme(scheme)).dequantize(torch.float64)
    own = nn.Parameter(values.T if weight.layers[0].transposed else values)
    for layer in weight.layers:
        changed.get_submodule(layer.path).weight = own
    change = size = 0.0
    for args, kwargs in map(split_inputs, inputs):
        args = tuple(x.double() if x.is_floating_point() else x for x in args)
        with torch.no_grad():
            y, z = (m.double()(*args, **kwargs) for m in (copy.deepcopy(model), changed))
        if hasattr(y, "logits"):
            p, q = (logits.log_softmax(-1) for logits in (y.logits, z.logits))
            change += (p.exp() * (p - q)).sum().item()
            size += p[..., 0].numel()
        else:
            change += (y - z).square().sum().item()
            size += y.square().sum().item()
    return change / size


@pytest.mark.parametrize("name", MODELS)
def test_as_on_copies_with_one_weight_exchanged(name: str) -> None:
    model, inputs = case(name)
    weights = weights_of(model)
    truth = {
        (each.weight, scheme): expected(model, inputs, each, scheme)
        for each in weights
        for scheme in SCHEMES
    }
    untie(weights)
    steps: list[str] = []
    found = sensitivities(model, weights, list(map(split_inputs, inputs)), 0, steps.append)
    assert found == pytest.approx(truth, rel=1e-3)
    assert min(truth.values()) > 0
    assert len(steps) == len(truth) * len(inputs)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = case("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    parameters = {name: id(p) for name, p in model.named_parameters()}
    model.train()
    sensitivities(model, weights_of(model), [split_inputs(inputs[0])], 0, lambda name: None)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert {name: id(p) for name, p in model.named_parameters()} == parameters
    assert all(m.training for m in model.modules())
    assert not any("forward" in vars(m) for m in model.modules())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_the_model_is_left_as_it_was_when_it_fails() -> None:
    model, _ = case("llama")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def fail(name: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sensitivities(model, weights_of(model), [split_inputs(IDS)], 0, fail)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert not any("forward" in vars(m) for m in model.modules())


def test_quantizers_see_the_layers_inputs() -> None:
    """GPTQ needs statistics, and with them does better than without."""
    model, inputs = case("llama")
    layers = layers_of(model, ("*=int8_row",), True)
    weights = candidates_of(layers, ("int2_g32", "int2_g32+gptq"))
    found = sensitivities(model, weights, list(map(split_inputs, inputs)), 0, lambda name: None)
    total = {s: sum(found[each.weight, s] for each in weights) for s in weights[0].schemes}
    assert total["int2_g32+gptq"] < 0.7 * total["int2_g32"]


def test_activations_are_quantized_too() -> None:
    model, inputs = case("plain")
    layers = layers_of(model, ("*=int8_row",), True)
    weights = candidates_of(layers, ("nvfp4_static", "nvfp4", "w4a16_nvfp4"))
    found = sensitivities(model, weights, list(map(split_inputs, inputs)), 0, lambda name: None)
    for each in weights:
        alone = found[each.weight, "w4a16_nvfp4"]
        assert found[each.weight, "nvfp4"] > 1.2 * alone
        assert found[each.weight, "nvfp4_static"] > 1.2 * alone


def test_weights_that_cannot_be_quantized() -> None:
    model, inputs = case("plain")
    model.get_parameter("up.weight").data[0, 0] = torch.inf
    weights = weights_of(model)
    with pytest.raises(GqcError, match=r"up: weight \[96, 64\]: the weight holds inf or NaN"):
        sensitivities(model, weights, list(map(split_inputs, inputs)), 0, lambda name: None)
