"""What of a model becomes linear layers before it is captured, the same in every way to capture it.

Stacked experts (`gqc.frontend.experts`), torch's packed attention (`gqc.frontend.attention`), and
linear layers whose weight is computed at each call, by weight or spectral normalization, of either
kind that torch has: in evaluation that weight is always the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from gqc.frontend.attention import is_packed, separate_attention
from gqc.frontend.experts import separate_experts, slots_of

HOOKS = {WeightNorm: remove_weight_norm, SpectralNorm: remove_spectral_norm}
"""Hooks that compute a parameter before each call, and what puts the result in their place."""


def prepare(model: nn.Module) -> None:
    """Make linear layers of what `needs_preparing` finds, in place; the model is a copy."""
    separate_experts(model)
    separate_attention(model)
    for module in list(model.modules()):
        if isinstance(module, nn.Linear):
            settle(module)


def needs_preparing(model: nn.Module) -> bool:
    """Whether `prepare` would change a model."""
    return any(
        is_packed(module) or slots_of(module) is not None or is_computed(module)
        for module in model.modules()
        if module is not model
    ) or is_computed(model)


def computing_hooks(module: nn.Module) -> list[Any]:
    return [hook for hook in module._forward_pre_hooks.values() if type(hook) in HOOKS]


def is_computed(module: nn.Module) -> bool:
    """Whether a linear layer computes its weight or bias at each call."""
    return isinstance(module, nn.Linear) and bool(
        parametrize.is_parametrized(module) or computing_hooks(module)
    )


def settle(layer: nn.Linear) -> None:
    """Give a layer the parameters that it computes."""
    for hook in computing_hooks(layer):
        HOOKS[type(hook)](layer, hook.name)
    if not parametrize.is_parametrized(layer):
        return
    computed: Any = layer.parametrizations
    with torch.no_grad():
        values = {name: getattr(layer, name).detach() for name in computed}
    # Torch's own way takes the property from the class, which a copy shares with the original.
    layer.__class__ = parametrize.type_before_parametrizations(layer)
    del layer._modules["parametrizations"]
    for name, value in values.items():
        layer.register_parameter(name, nn.Parameter(value, requires_grad=False))
