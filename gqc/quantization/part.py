"""One part of a model: its layers' weights quantized, and put in their place for what follows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from gqc.checkpoints.weights import Prescaled, Rotated, Transposed, Weight, dense
from gqc.checkpoints.writer import unwrapped
from gqc.errors import GqcError
from gqc.formats.block_scaled import sqnr
from gqc.formats.elements import ELEMENTS
from gqc.formats.microscaling import nvfp4_tensor_scale
from gqc.formats.rotation import rotate
from gqc.quantization.input_error import InputFormat, input_sqnr
from gqc.quantization.layers import Layer
from gqc.quantization.quantized import Fact
from gqc.quantizers import Statistics, microscaling, quantize, underflow
from gqc.schemes import Scheme


@dataclass
class Result:
    """What became of a part: quantized weights, static scales of inputs by the name of the weight,
    changed dense parameters, and facts."""

    weights: dict[str, Weight] = field(default_factory=dict)
    input_scales: dict[str, torch.Tensor] = field(default_factory=dict)
    dense: dict[str, torch.Tensor] = field(default_factory=dict)
    facts: list[Fact] = field(default_factory=list)

    def update(self, other: Result) -> None:
        """Add another part's."""
        self.weights |= other.weights
        self.input_scales |= other.input_scales
        self.dense |= other.dense
        self.facts += other.facts


def rotation_of(layer: Layer) -> int:
    """Elements of a layer's input that are rotated together, 1 for none."""
    scheme = layer.scheme
    if scheme is None or "hadamard" not in scheme.transforms or layer.transposed:
        return 1
    return scheme.group or 1


def quantize_layers(
    layers: Sequence[Layer],
    statistics: Mapping[str, Statistics],
    reasons: Mapping[str, str],
    done: Mapping[str, Weight],
    factors: Mapping[str, torch.Tensor] = MappingProxyType({}),
) -> Result:
    """Quantize the weights of layers, all of which have a scheme.

    statistics: of their inputs, by path. reasons: what their schemes ask for and do not get. done:
    weights that are quantized already, for layers that share one. factors: [K] by path, what inputs
    are divided by as the model runs; statistics are of inputs so divided. Warns of layers without a
    static scale, for no input reached them. Raises one GqcError that names all layers whose weights
    cannot be quantized.
    """
    result, problems, unseen = Result(), [], []
    for layer in layers:
        try:
            seen, known = statistics.get(layer.path), {**done, **result.weights}
            weight, fact = quantized(layer, seen, known, factors.get(layer.path))
            scale = static_scale(layer, seen)
        except ValueError as error:
            problems.append(problem_of(layer, error))
            continue
        result.weights[layer.weight] = weight
        if scale is not None:
            result.input_scales[layer.weight] = scale
        elif layer.scheme is not None and layer.scheme.is_static:
            unseen.append(layer.path)
        note = [reasons.get(layer.path, ""), unrotated(layer), fact.reason]
        result.facts.append(replace(fact, reason="; ".join(filter(None, note))))
    refuse_weights(problems)
    if unseen:
        warnings.warn(
            f"no calibration input reached {', '.join(unseen)}: the tensor scale of their inputs "
            "is dynamic",
            stacklevel=2,
        )
    return result


def problem_of(layer: Layer, error: ValueError) -> str:
    """What is wrong with the weight of a layer."""
    return f"{layer.path}: weight {list(layer.matrix().shape)}: {error}"


def refuse_weights(problems: list[str]) -> None:
    """Raise one GqcError for all weights that have a problem, if any has."""
    several = [f"{len(problems)} weights cannot be quantized:"] if len(problems) > 1 else []
    if problems:
        raise GqcError("\n  ".join([*several, *problems]))


def unrotated(layer: Layer) -> str:
    """What to say where a scheme's rotation is left out."""
    asked = layer.scheme is not None and "hadamard" in layer.scheme.transforms
    return "a Conv1D is not rotated" if asked and layer.transposed else ""


def quantized(
    layer: Layer,
    statistics: Statistics | None,
    done: Mapping[str, Weight],
    factor: torch.Tensor | None,
) -> tuple[Weight, Fact]:
    """The quantized weight of a layer, and what is to be said of it. Raises ValueError."""
    scheme, matrix = layer.scheme, layer.matrix()
    assert scheme is not None
    fact = Fact(layer.path, layer.weight, layer.text)
    if layer.weight in done:
        return done[layer.weight], replace(fact, reason="quantized as another layer's weight")
    size = rotation_of(layer)
    if factor is not None:
        matrix = matrix.float() * factor
    if size > 1:
        matrix = rotate(matrix.float(), size)
        statistics = None if statistics is None else statistics.rotated(size)
    found = quantize(matrix, scheme, statistics)
    fact = replace(fact, sqnr=sqnr(matrix, found), reason=underflow(matrix, found))
    if statistics is not None:
        unseen = "" if statistics.rows else "no calibration input reached it"
        reason = "; ".join(filter(None, (fact.reason, unseen)))
        fact = replace(fact, rows=statistics.rows, reason=reason)
        if statistics.power.any():
            noise = statistics.output_error(found.dequantize() - matrix).double().sum()
            signal = statistics.output_error(matrix).double().sum()
            fact = replace(fact, output_sqnr=10 * math.log10(signal / noise) if noise else math.inf)
            if scheme.activation is not None:
                format = InputFormat.of(scheme.activation, static_scale(layer, statistics))
                fact = replace(fact, input_sqnr=input_sqnr(statistics.sample, matrix, format))
    weight = Rotated(found, size) if size > 1 else found
    if factor is not None:
        weight = Prescaled(weight, 1 / factor)
    return Transposed(weight) if layer.transposed else weight, fact


def static_scale(layer: Layer, statistics: Statistics | None) -> torch.Tensor | None:
    """The calibrated tensor scale of a layer's input, a scalar; None where its scheme has none, and
    where there were no inputs, as of an expert that no token went to.

    That of all its inputs together (`formats.microscaling.nvfp4_tensor_scale`).
    """
    activation = None if layer.scheme is None else layer.scheme.activation
    if activation is None or not activation.static or statistics is None or not statistics.rows:
        return None
    return nvfp4_tensor_scale(statistics.greatest, ELEMENTS[activation.element])


class Installed:
    """Layers that compute, in the model, as a part's quantized weights do, inputs quantized too."""

    def __init__(self, layers: Sequence[Layer], result: Result):
        paths = {fact.layer for fact in result.facts}
        self.layers = [layer for layer in layers if layer.path in paths]
        self.hooks = []
        for layer in self.layers:
            weight, scheme = result.weights[layer.weight], layer.scheme
            layer.set_matrix(matrix_of(weight, layer))
            if scheme is not None and scheme.activation is not None:
                scale = result.input_scales.get(layer.weight)
                hook = input_quantizer(scheme.activation, weight, scale)
                self.hooks.append(layer.module.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self, dense: Mapping[str, torch.Tensor]) -> None:
        """Give the layers the weights back that they had, by path."""
        for layer in self.layers:
            layer.module.get_parameter("weight").data = dense[layer.path]
        for hook in self.hooks:
            hook.remove()


def matrix_of(weight: Weight, layer: Layer) -> torch.Tensor:
    """The matrix [N, K] that a quantized weight stands for."""
    values = dense(weight)
    return values.t() if layer.transposed else values


def input_quantizer(activation: Scheme, weight: Weight, tensor_scale: torch.Tensor | None) -> Any:
    """A hook that rounds the input of a layer as the compiled model does, once it is multiplied and
    rotated for the weight."""
    wrappers = dict(unwrapped(weight)[0])
    size = wrappers["Rotated"].block if "Rotated" in wrappers else 1
    factor = wrappers["Prescaled"].factor if "Prescaled" in wrappers else torch.ones(())

    def rounded(x: torch.Tensor) -> torch.Tensor:
        given = rotate(x.float() * factor, size)
        type_ = activation.type(x.ndim)
        found = microscaling(given, type_, activation.scale_rule, tensor_scale).dequantize()
        return (rotate(found, size) / factor).to(x.dtype)

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> Any:
        return tuple(map(rounded, args)), {name: rounded(x) for name, x in kwargs.items()}

    return hook
