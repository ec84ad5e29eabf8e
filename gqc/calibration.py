"""Calibration: what the inputs of layers reach, for activations under a static scale."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS
from gqc.formats.microscaling import nvfp4_tensor_scale
from gqc.frontend.capture import inference, split_inputs
from gqc.frontend.linears import is_conv1d
from gqc.passes.quantize_activations import input_scale
from gqc.schemes import KEEP, Patterns, Scheme, parse_scheme


def static_layers(model: nn.Module, entries: Sequence[str]) -> dict[str, Scheme]:
    """Schemes of the inputs that are quantized under a static scale, by the linear layer's path."""
    patterns, layers = Patterns(entries), {}
    for path, module in model.named_modules():
        match = patterns.match(path)
        linear = isinstance(module, nn.Linear) or is_conv1d(module)
        if match is None or match[1] == KEEP or not linear:
            continue
        activation = parse_scheme(match[1]).activation
        if activation is not None and activation.static:
            layers[path] = activation
    return layers


def calibrate(
    model: nn.Module, inputs: Iterable[Any], layers: Mapping[str, Scheme]
) -> dict[str, torch.Tensor]:
    """Tensor scales of the inputs of layers, float32 [1], by their names in the side store.

    Runs the model on each of `inputs`, which are given as example inputs are (a tensor, a tuple, a
    dict of keywords, or a pair of both); none is kept. The scale of a layer is that of all its
    inputs together (`formats.microscaling.nvfp4_tensor_scale`). Raises GqcError if there are no
    inputs, or a layer is never called.
    """
    greatest: dict[str, torch.Tensor] = {}

    def observer(path: str):
        def observe(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            (x,) = (*args, *kwargs.values())
            if x.numel():  # an expert may be called on no token
                amax = torch.where(x.isfinite(), x, 0).abs().amax().float()
                greatest[path] = torch.maximum(greatest.get(path, amax), amax)

        return observe

    handles = [
        model.get_submodule(path).register_forward_pre_hook(observer(path), with_kwargs=True)
        for path in layers
    ]
    try:
        with inference(model):
            for example in inputs:
                args, kwargs = split_inputs(example)
                model(*args, **kwargs)
    finally:
        for handle in handles:
            handle.remove()
    if missing := [path for path in layers if path not in greatest]:
        raise GqcError(
            f"no calibration input reached {', '.join(missing)}: give inputs that run every layer, "
            "or these layers a scheme whose tensor scale is dynamic"
        )
    return {
        input_scale(path): nvfp4_tensor_scale(amax, ELEMENTS[layers[path].element]).reshape(1)
        for path, amax in greatest.items()
    }
