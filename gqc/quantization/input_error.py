"""What quantizing the input of a layer costs: the error that it alone brings into the outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects import gq
from gqc.dialects.gq_channels import ChannelOp
from gqc.frontend.capture import inference, split_inputs
from gqc.frontend.linears import is_conv1d, is_linear
from gqc.passes.helpers import layer_names, matmuls
from gqc.quantization.quantized import Quantized
from gqc.quantizers import microscaling
from gqc.quantizers.statistics import SAMPLE
from gqc.schemes import Scheme


@dataclass(frozen=True)
class InputFormat:
    """How the input of a layer is quantized: its type as a matrix, the rule of its scales, and the
    scale of the whole tensor, a scalar, where that is calibrated."""

    type: gq.BlockScaledType
    rule: str
    tensor_scale: torch.Tensor | None = None

    @staticmethod
    def of(scheme: Scheme, tensor_scale: torch.Tensor | None = None) -> InputFormat:
        """That of a scheme of activations."""
        return InputFormat(scheme.type(), scheme.scale_rule, tensor_scale)


def input_sqnr(x: torch.Tensor, weight: torch.Tensor, format: InputFormat) -> float | None:
    """10·log10(Σy² / Σ(y − ŷ)²) in dB, for y = x·Wᵀ and ŷ the same of x as it is quantized.

    x: [S, K], weight: [N, K], computed in float32. inf where nothing is lost, None without outputs
    that could be.
    """
    x, weight = x.float(), weight.detach().float()
    found = microscaling(x, format.type, format.rule, format.tensor_scale).dequantize()
    signal = (x @ weight.t()).double().square().sum()
    noise = ((x - found) @ weight.t()).double().square().sum()
    if not signal:
        return None
    return 10 * math.log10(signal / noise) if noise else math.inf


def input_formats(module: ModuleOp, weights: Mapping[str, Any]) -> dict[str, InputFormat]:
    """How inputs are quantized as they come, by layer: of a module that keeps the grouped contract.

    Those that are permuted or rotated first are left out. weights: the side store.
    """
    formats: dict[str, InputFormat] = {}
    for matmul in matmuls(module):
        cast = matmul.x.owner
        if not isinstance(cast, gq.QcastOp) or isinstance(cast.source.owner, ChannelOp):
            continue
        type_ = gq.block_scaled(cast.result)
        assert type_ is not None
        matrix = type_.with_block([1, type_.block.data[-1].data])
        stored = None if cast.tensor_scale is None else cast.tensor_scale.owner
        scale = weights[stored.key].squeeze() if isinstance(stored, gq.WeightOp) else None
        format_ = InputFormat(matrix, cast.scale_rule.data, scale)
        formats |= dict.fromkeys(layer_names(matmul, matmul.weight), format_)
    return formats


Measure = Callable[[Mapping[str, InputFormat]], dict[str, float]]
"""What quantized inputs cost in dB (`input_sqnr`), by layer, as far as it is known."""


def unmeasured(formats: Mapping[str, InputFormat]) -> dict[str, float]:
    """The measure that knows nothing."""
    return {}


def measure_of(model: Any, weights: Any, example_inputs: Any) -> Measure:
    """A measure from what is at hand: calibration's, which `gqc.quantize` has seen, or else the
    example inputs of the model, if it is no graph that has its own."""
    facts = weights.facts if isinstance(weights, Quantized) else ()
    known = {f.layer: f.input_sqnr for f in facts if f.input_sqnr is not None}
    if known:
        return lambda formats: known
    plain = isinstance(model, nn.Module) and not isinstance(model, fx.GraphModule)
    if not plain or example_inputs is None or any(p.is_meta for p in model.parameters()):
        return unmeasured
    return lambda formats: input_sqnrs(model, example_inputs, formats)


def input_sqnrs(
    model: nn.Module, example_inputs: Any, formats: Mapping[str, InputFormat]
) -> dict[str, float]:
    """`input_sqnr` of layers by path, from one run of the dense model on example inputs.

    Of each layer's first call, up to `SAMPLE` rows count. Layers that the model calls as functions
    are left out.
    """
    found: dict[str, float] = {}
    modules = dict(model.named_modules())

    def hook(path: str) -> Any:
        def observe(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            (x,) = (*args, *kwargs.values())
            if path not in found:
                weight = module.get_parameter("weight")
                weight = weight.t() if is_conv1d(module) else weight
                rows = x.detach().reshape(-1, x.shape[-1])[:SAMPLE]
                if (ratio := input_sqnr(rows, weight, formats[path])) is not None:
                    found[path] = ratio

        return observe

    linears = {p: modules.get(p, model if len(modules) == 1 else None) for p in formats}
    hooks = [
        module.register_forward_pre_hook(hook(path), with_kwargs=True)
        for path, module in linears.items()
        if module is not None and is_linear(module)
    ]
    try:
        if hooks:
            args, kwargs = split_inputs(example_inputs)
            with inference(model):
                model(*args, **kwargs)
    finally:
        for each in hooks:
            each.remove()
    return found
