"""Factors of the channels that layers read, folded into what makes the channels."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from gqc.errors import GqcError
from gqc.frontend.channel_groups import Group, channel_groups
from gqc.quantization.layers import Layer
from gqc.quantization.stream import Part
from gqc.quantizers import FACTORS, Statistics
from gqc.schemes import Scheme


def factor_of(scheme: Scheme | None) -> str | None:
    """The transform by factors that a scheme asks for, if any."""
    names = () if scheme is None else scheme.transforms
    return next((name for name in names if name in FACTORS), None)


def groups_for(model: nn.Module, example: Any, layers: Sequence[Layer]) -> list[Group]:
    """Groups of layers that read one input, if some layer's scheme asks for factors.

    A model that cannot be captured has none: a warning says why.
    """
    if not any(factor_of(layer.scheme) for layer in layers):
        return []
    try:
        return channel_groups(model, example)
    except GqcError as error:
        warnings.warn(f"no factor can be folded into the model: {error}", stacklevel=4)
        return []


class Factors:
    """Finds the factors of one part of a model and changes its parameters by them.

    reasons: why a layer, by path, has none though its scheme asks for one. changed: names of the
    parameters that are others now. statistics: those of the layers, changed likewise.
    """

    def __init__(
        self,
        model: nn.Module,
        part: Part,
        layers: Sequence[Layer],
        statistics: Mapping[str, Statistics],
    ):
        self.model, self.part = model, part
        self.layers = {layer.path: layer for layer in layers}
        self.statistics = dict(statistics)
        self.reasons: dict[str, str] = {}
        self.changed: set[str] = set()

    def run(self, groups: Sequence[Group]) -> None:
        """Go through the groups, those in the part with layers that ask for factors."""
        asking = [path for path, layer in self.layers.items() if factor_of(layer.scheme)]
        for path in asking:
            self.reasons[path] = "it is not known what computes its input"
        for group in groups:
            ours = [path for path in group.layers if path in asking]
            if ours:
                reason = self.reason_against(group) or self.apply(group)
                self.reasons.update(dict.fromkeys(ours, reason))

    def reason_against(self, group: Group) -> str:
        """Why the input of a group takes no factor; empty if it may."""
        others = [path for path in group.layers if path not in self.layers]
        producers = [change.name for change in group.producers]
        outside = [name for name in producers if not self.part.holds(name)]
        if group.reason:
            return group.reason
        if others or len({self.layers[path].scheme for path in group.layers}) > 1:
            return "layers that read its input have another scheme"
        if outside:
            return f"{', '.join(outside)} is outside of {self.part.name}"
        return ""

    def apply(self, group: Group) -> str:
        """Find the factor of a group and apply it; why not, if none is better than none."""
        layers = [self.layers[path] for path in group.layers]
        scheme, statistics = layers[0].scheme, self.statistics[layers[0].path]
        name = factor_of(scheme)
        assert name is not None and scheme is not None
        factor = FACTORS[name]([layer.matrix() for layer in layers], scheme, statistics)
        if factor is None:
            return "no factor is better than none"
        for change in (*group.weights, *group.producers):
            parameter = self.model.get_parameter(change.name)
            parameter.data = change.apply(parameter, factor)
            self.changed.add(change.name)
        scaled = statistics.scaled(1 / factor)
        self.statistics.update((layer.path, scaled) for layer in layers)
        return ""
