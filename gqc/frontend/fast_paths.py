"""Paths of torch's modules that compute their linear layers themselves, from dense weights."""

from __future__ import annotations

from torch import nn

from gqc.frontend.graph_modules import GroupedQuantModule


def call_linear_layers(model: nn.Module) -> None:
    """Have encoders call their layers, where some are compiled.

    In evaluation mode `nn.TransformerEncoderLayer` is one call of torch's that reads the layers'
    weights, which would be decoded each time, and `nn.TransformerEncoder` gives it nested tensors.
    """
    for module in model.modules():
        if not any(isinstance(each, GroupedQuantModule) for each in module.modules()):
            continue
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # read for that path alone: "neither of the two"
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
