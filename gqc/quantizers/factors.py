"""Factors of channels: what the inputs of layers are divided by, and their weights multiplied.

Candidates are compared by what they do to the outputs of the layers, quantized as they will be.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from gqc.formats.microscaling import nvfp4_tensor_scale
from gqc.formats.rotation import rotate
from gqc.quantizers.microscaling import microscaling

if TYPE_CHECKING:
    import torch

    from gqc.quantizers.statistics import Statistics
    from gqc.schemes import Scheme

STEPS = 20
"""Exponents α that are tried: 0, 1/20, … 19/20."""
PROXIES = {"gptq": "scale_search"}
"""Quantizers in place of those that are too slow to try with every candidate."""


def powers(x: torch.Tensor, weight: torch.Tensor) -> Iterable[torch.Tensor]:
    """Candidates x^α / weight^(1−α), [K], whose greatest and least multiply to 1."""
    x, weight = (part.clamp(min=float(part.max()) * 1e-4) for part in (x, weight))
    for step in range(STEPS):
        factor = x ** (step / STEPS) / weight ** (1 - step / STEPS)
        yield factor / (factor.max() * factor.min()).sqrt()


def best_factor(
    candidates: Iterable[torch.Tensor],
    weights: Sequence[torch.Tensor],
    scheme: Scheme,
    statistics: Statistics,
) -> torch.Tensor | None:
    """The candidate under which the outputs of layers that read one input err least.

    weights: [N, K] each. None if no candidate is better than no factor.
    """
    if not statistics.power.any():
        return None
    best, least = None, output_error(weights, scheme, statistics)
    for factor in candidates:
        scaled = [weight * factor for weight in weights]
        error = output_error(scaled, scheme, statistics.scaled(1 / factor))
        if error < least:
            best, least = factor, error
    return best


def output_error(weights: Sequence[torch.Tensor], scheme: Scheme, statistics: Statistics) -> float:
    """Mean square of what quantization does to the outputs of layers that read one input.

    weights: [N, K] each. By the Gram matrix of the inputs or, where they are quantized too, by the
    sample of them.
    """
    from gqc.quantizers import quantize

    trial = replace(scheme, quantizer=PROXIES.get(scheme.quantizer, scheme.quantizer))
    size = scheme.group if scheme.group and "hadamard" in scheme.transforms else 1
    inputs = statistics.rotated(size) if size > 1 else statistics
    activation, error = scheme.activation, 0.0
    given = inputs.sample if activation is None else quantized_inputs(inputs, activation)
    for weight in weights:
        exact = rotate(weight.float(), size)
        found = quantize(exact, trial, inputs).dequantize()
        if activation is None:
            error += float(inputs.output_error(found - exact).sum())
        else:
            difference = given @ found.T - inputs.sample @ exact.T
            error += float(difference.square().sum(1).mean())
    return error


def quantized_inputs(statistics: Statistics, activation: Scheme) -> torch.Tensor:
    """The sample of inputs as the model quantizes them, [S, K]."""
    x, type_, scale = statistics.sample, activation.type(), None
    if activation.static:
        scale = nvfp4_tensor_scale(statistics.greatest, type_.format)
    return microscaling(x, type_, activation.scale_rule, scale).dequantize()
