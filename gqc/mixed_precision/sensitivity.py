"""How much a model's output changes when one weight alone is quantized, measured."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from gqc.frontend.capture import Inputs, inference
from gqc.mixed_precision.output_change import Reference
from gqc.quantization.layers import Layer
from gqc.quantization.observe import observe
from gqc.quantization.part import Installed, Result, quantize_layers
from gqc.quantization.stream import Part, Stream, replayed
from gqc.quantizers import Statistics
from gqc.schemes import parse_scheme


@dataclass(frozen=True)
class Candidates:
    """A weight: the layers that read it, and the schemes that it may have, by their texts."""

    layers: tuple[Layer, ...]
    schemes: tuple[str, ...]

    @property
    def weight(self) -> str:
        """Its name."""
        return self.layers[0].weight

    def under(self, scheme: str) -> list[Layer]:
        """The layers with a scheme."""
        how = {"scheme": parse_scheme(scheme), "text": scheme}
        return [replace(layer, **how) for layer in self.layers]

    @contextmanager
    def installed(self, scheme: str, result: Result) -> Iterator[None]:
        """The layers compute as they do under a scheme, and then as they did before."""
        weights = {each.path: each.module.get_parameter("weight").data for each in self.layers}
        installed = Installed(self.under(scheme), result)
        try:
            yield
        finally:
            installed.remove(weights)


Losses = dict[tuple[str, str], float]
"""Sensitivities by the name of the weight and the text of the scheme."""


def sensitivities(
    model: nn.Module,
    weights: Sequence[Candidates],
    inputs: Sequence[Inputs],
    seed: int,
    step: Callable[[str], None],
) -> Losses:
    """What each candidate of each weight does to the model's outputs, the others as they are.

    Where outputs have `logits`, the mean over tokens of the Kullback–Leibler divergence, in nats;
    else the squared change over the outputs' own squares (`output_change`).

    Of a block the weights are tried with the output of the block before at hand, so that the model
    runs from there. What is held at a time: quantized weights of one block under each candidate
    (of the whole model where it has no blocks), and one output of the model. step: called with a
    name after each run. The model is left as it was found.
    """
    stream = Stream(model, inputs)
    whole = copy(stream)
    whole.blocks = {}
    losses: Losses = {}
    for part in stream.parts():
        if part.is_block:
            own = [each for each in weights if first_block(each, stream) == part.number]
            losses |= measure(stream, part, own, seed, step)
            for _ in stream.run(part, keep=True):
                pass
    own = [each for each in weights if first_block(each, stream) is None]
    return losses | measure(whole, whole.parts()[0], own, seed, step)


def first_block(weight: Candidates, stream: Stream) -> int | None:
    """The first block that reads a weight; None where something outside of the blocks does."""
    blocks = [part for part in stream.parts() if part.is_block]
    homes = [[part.number for part in blocks if part.holds(layer.path)] for layer in weight.layers]
    return min(home[0] for home in homes) if all(homes) else None


def measure(
    stream: Stream,
    part: Part,
    weights: Sequence[Candidates],
    seed: int,
    step: Callable[[str], None],
) -> Losses:
    """Sensitivities of weights that no earlier part reads."""
    if not weights:
        return {}
    quantized = quantized_weights(stream, part, weights, seed)
    losses = {(each.weight, scheme): 0.0 for each in weights for scheme in each.schemes}
    size = 0.0
    with inference(stream.model):
        for i, example in enumerate(stream.inputs):
            exact = Reference(run_from(stream, part, i), example)
            size += exact.size
            for weight in weights:
                for scheme in weight.schemes:
                    with weight.installed(scheme, quantized[scheme]):
                        output = run_from(stream, part, i)
                    losses[weight.weight, scheme] += exact.change(output)
                    step(f"{weight.layers[0].path} {scheme}")
    return {key: loss / size if size else float("nan") for key, loss in losses.items()}


def quantized_weights(
    stream: Stream, part: Part, weights: Sequence[Candidates], seed: int
) -> dict[str, Result]:
    """Weights of a part under each of their schemes."""
    schemes = dict.fromkeys(scheme for each in weights for scheme in each.schemes)
    statistics: Mapping[str, Statistics] = {}
    if any(parse_scheme(scheme).uses_calibration for scheme in schemes):
        layers = [layer for each in weights for layer in each.layers]
        statistics = observe(stream, part, layers, seed, lambda: None)
    return {
        scheme: quantize_layers(
            [layer for each in weights if scheme in each.schemes for layer in each.under(scheme)],
            *(statistics, {}, {}),
        )
        for scheme in schemes
    }


def run_from(stream: Stream, part: Part, number: int) -> Any:
    """The model's output for an input, the blocks before a part replayed."""
    args, kwargs = stream.inputs[number]
    before = list(stream.blocks.values())[: part.number]
    with replayed(before, stream.outputs[number]):
        return stream.model(*args, **kwargs)
