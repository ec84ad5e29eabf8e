"""Which layers of a model are quantized, and how: what the compiler's own passes say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import nn
from xdsl.context import Context

from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.frontend.linears import capture_linears, is_conv1d
from gqc.passes.helpers import layer_name, matmuls, weight_of
from gqc.passes.quantize_weights import QuantizeWeights
from gqc.passes.recognize_linears import RecognizeLinears
from gqc.quantizers import RULES
from gqc.schemes import KEEP, Patterns, Scheme, parse_scheme


@dataclass
class Layer:
    """A linear layer: its path, the module there, and the name of its weight (of tied ones, the
    first that is a linear layer's). scheme: how it is quantized, `text` as it was asked for; None
    if it is kept, for `reason`."""

    path: str
    module: nn.Module
    weight: str
    scheme: Scheme | None
    text: str = ""
    reason: str = ""

    @property
    def transposed(self) -> bool:
        """Whether the module holds its weight as [K, N]."""
        return is_conv1d(self.module)

    def matrix(self) -> torch.Tensor:
        """The weight [N, K] that the module has now."""
        weight = self.module.get_parameter("weight").detach()
        return weight.t() if self.transposed else weight

    def set_matrix(self, values: torch.Tensor) -> None:
        """Give the module other values [N, K] for its weight."""
        weight = self.module.get_parameter("weight")
        values = values.t() if self.transposed else values
        weight.data = values.to(device=weight.device, dtype=weight.dtype)


def layers_of(model: nn.Module, schemes: Sequence[str], lm_head: bool) -> list[Layer]:
    """Every linear layer that `gqc.compile` sees in a model.

    schemes: `pattern=scheme`, as of `scheme_list`. Raises GqcError as `gqc.compile` does, and where
    layers share one weight under different schemes.
    """
    module, patterns = capture_linears(model).module, Patterns(schemes)
    plain = [f"{p}={s if s == KEEP else plainly(parse_scheme(s))}" for p, s in patterns.entries]
    for pass_ in (RecognizeLinears(), QuantizeWeights(tuple(plain), lm_head)):
        pass_.apply(Context(), module)
    layers: list[Layer] = []
    apart: dict[str, str] = {}
    for matmul in matmuls(module):
        path, weight = layer_name(matmul), weight_of(matmul.weight)
        assert weight is not None
        name = weight.key
        if "shared" in weight.attributes:  # an embedding keeps the weight as it is, under that name
            name = apart.setdefault(name, f"{path}.weight")
        match = patterns.match(path)
        if gq.block_scaled(matmul.weight) is not None and match is not None:
            how = parse_scheme(match[1]), match[1], ""
        else:
            how = None, "", matmul.decision.reason.data if matmul.decision is not None else ""
        own = "" if path == weight.key else path  # a model that is one linear layer
        layers.append(Layer(path, model.get_submodule(own), name, *how))
    refuse_split_weights(layers)
    return layers


def plainly(scheme: Scheme) -> Scheme:
    """The same format, without transforms and by the first quantizer that fits: what the compiler's
    passes can decide on."""
    quantizer = next(name for name, rules in RULES.items() if scheme.scale_rule in rules)
    return replace(scheme, transforms=(), quantizer=quantizer)


def refuse_split_weights(layers: Sequence[Layer]) -> None:
    """Raise GqcError where a weight would have several forms."""
    first: dict[str, Layer] = {}
    for layer in layers:
        other = first.setdefault(layer.weight, layer)
        static = layer.scheme is not None and layer.scheme.is_static
        if other.scheme != layer.scheme or (static and other is not layer):
            raise GqcError(
                f"{other.path} and {layer.path} share the weight {layer.weight}: give them one "
                "scheme, without a static scale, or keep both"
            )
