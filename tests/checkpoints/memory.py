"""A source in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from gqc.checkpoints.source import Origin
from gqc.checkpoints.weights import Weight
from gqc.quantizers import QUANTIZERS
from gqc.schemes import Scheme, parse_scheme


@dataclass
class Memory:
    """Parameters by name, schemes and scales of inputs by the names of their weights."""

    weights: dict[str, Weight]
    config: dict[str, Any] = field(default_factory=dict)
    activations: dict[str, Scheme] = field(default_factory=dict)
    scales: dict[str, torch.Tensor] = field(default_factory=dict)

    def names(self) -> list[str]:
        return [*self.weights]

    def read(self, name: str) -> Weight:
        return self.weights[name]

    def origin(self, name: str) -> Origin:
        return Origin("by hand", 42.0)

    def activation(self, name: str) -> Scheme | None:
        return self.activations.get(name)

    def input_scale(self, name: str) -> torch.Tensor | None:
        return self.scales.get(name)


def layer(
    scheme: str, n: int = 48, k: int = 256, name: str = "model.layers.0.mlp.up_proj"
) -> Memory:
    """A layer quantized by a scheme, with a bias, and a norm."""
    random = torch.Generator().manual_seed(n)
    dense, said = torch.randn(n, k, generator=random), parse_scheme(scheme)
    quantizer = QUANTIZERS[said.quantizer]
    source = Memory(
        {
            f"{name}.weight": quantizer(dense, said.type(), said.scale_rule),
            f"{name}.bias": torch.randn(n, generator=random),
            "model.norm.weight": torch.randn(k, generator=random).bfloat16(),
        }
    )
    if said.activation is not None:
        source.activations[f"{name}.weight"] = said.activation
        if said.activation.static:
            source.scales[f"{name}.weight"] = torch.tensor(0.25)
    return source
