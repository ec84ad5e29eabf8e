"""Channels that layers read, multiplied by factors or reordered in what makes the channels."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from gqc.errors import GqcError
from gqc.frontend.channel_groups import Group, channel_groups
from gqc.quantization.layers import Layer
from gqc.quantization.stream import Part
from gqc.quantizers import AT_RUN_TIME, FACTORS, ORDERED, Statistics, column_order
from gqc.schemes import Scheme

NONE_BETTER = "no factor is better than none"


def factor_of(scheme: Scheme | None) -> str | None:
    """The transform by factors that a scheme asks for, if any."""
    names = () if scheme is None else scheme.transforms
    return next((name for name in names if name in FACTORS), None)


def is_ordered(layer: Layer) -> bool:
    """Whether the order of a layer's input channels counts, and its scheme leaves it to us."""
    scheme = layer.scheme
    if scheme is None or scheme.quantizer not in ORDERED or scheme.group is None:
        return False
    return scheme.group < layer.matrix().shape[1]


def groups_for(model: nn.Module, example: Any, layers: Sequence[Layer]) -> dict[str, list[Group]]:
    """Groups of layers that read one input, by what some layer's scheme has done to its channels:
    `scale` or `gather`.

    A model that cannot be captured has none: a warning says why.
    """
    asked = {
        "scale": any(factor_of(layer.scheme) for layer in layers),
        "gather": any(map(is_ordered, layers)),
    }
    kinds = [kind for kind, is_asked in asked.items() if is_asked]
    try:
        return channel_groups(model, example, kinds) if kinds else {}
    except GqcError as error:
        warnings.warn(f"nothing can be folded into the model: {error}", stacklevel=4)
        return {}


class Transforms:
    """Changes the channels that the layers of one part of a model read, and what makes them.

    reasons: why a layer, by path, has no factor that folds though its scheme asks for one. ordered:
    paths of layers whose input is reordered. changed: names of the parameters that are others now.
    factors: by path, what multiplies weights, and divides inputs as the model runs. statistics:
    those of the layers, changed likewise. done: names of weights that are quantized.
    """

    def __init__(
        self,
        model: nn.Module,
        part: Part,
        layers: Sequence[Layer],
        statistics: Mapping[str, Statistics],
        done: Collection[str],
    ):
        self.model, self.part, self.done = model, part, done
        self.layers = {layer.path: layer for layer in layers}
        self.statistics = dict(statistics)
        self.reasons: dict[str, str] = {}
        self.ordered: set[str] = set()
        self.changed: set[str] = set()
        self.factors: dict[str, torch.Tensor] = {}

    def run(self, groups: Mapping[str, Sequence[Group]]) -> None:
        """Find factors, then orders, for the groups whose layers ask for them; then the factors
        that nothing takes."""
        asking = [path for path, layer in self.layers.items() if factor_of(layer.scheme)]
        self.reasons = dict.fromkeys(asking, "it is not known what computes its input")
        for group in groups.get("scale", ()):
            ours = [path for path in group.layers if path in asking]
            if ours:
                reason = self.reason_against(group) or self.scale(group)
                self.reasons.update(dict.fromkeys(ours, reason))
        for group in groups.get("gather", ()):
            if not self.reason_against(group) and is_ordered(self.layers[group.layers[0]]):
                self.order(group)
        for path, reason in self.reasons.items():
            layer = self.layers[path]
            is_left = reason not in ("", NONE_BETTER) and layer.weight not in self.done
            if is_left and factor_of(layer.scheme) in AT_RUN_TIME:
                self.scale_at_run_time(layer)

    def reason_against(self, group: Group) -> str:
        """Why the channels of a group cannot be changed; empty if they can."""
        others = [path for path in group.layers if path not in self.layers]
        producers = [change.name for change in group.producers]
        outside = [name for name in producers if not self.part.holds(name)]
        if group.reason:
            return group.reason
        if others or len({self.layers[path].scheme for path in group.layers}) > 1:
            return "layers that read its input have another scheme"
        if outside:
            return f"{', '.join(outside)} is outside of {self.part.name}"
        if quantized := [name for name in producers if name in self.done]:
            return f"{', '.join(quantized)} is quantized already"
        return ""

    def scale(self, group: Group) -> str:
        """Find the factor of a group and apply it; why not, if none is better than none."""
        factor, statistics = self.factor_for([self.layers[path] for path in group.layers])
        if factor is None:
            return NONE_BETTER
        self.change(group, factor, statistics)
        return ""

    def factor_for(self, layers: Sequence[Layer]) -> tuple[torch.Tensor | None, Statistics]:
        """The factor of layers of one input and scheme, None if none is better than none, and the
        statistics of the input divided by it."""
        scheme, statistics = layers[0].scheme, self.statistics[layers[0].path]
        name = factor_of(scheme)
        assert name is not None and scheme is not None
        factor = FACTORS[name]([layer.matrix() for layer in layers], scheme, statistics)
        return factor, statistics if factor is None else statistics.scaled(1 / factor)

    def scale_at_run_time(self, layer: Layer) -> None:
        """Find a factor for the input of one layer, which is divided as the model runs."""
        factor, statistics = self.factor_for([layer])
        if factor is None:
            self.reasons[layer.path] = NONE_BETTER
            return
        self.factors[layer.path], self.statistics[layer.path] = factor, statistics
        self.reasons[layer.path] = f"scaled at run time: {self.reasons[layer.path]}"

    def order(self, group: Group) -> None:
        """Reorder the channels of a group, if another order is better."""
        layers = [self.layers[path] for path in group.layers]
        scheme, statistics = layers[0].scheme, self.statistics[layers[0].path]
        assert scheme is not None
        order = column_order([layer.matrix() for layer in layers], scheme, statistics)
        if order is not None:
            self.change(group, order, statistics.permuted(order))
            self.ordered.update(group.layers)

    def change(self, group: Group, vector: torch.Tensor, statistics: Statistics) -> None:
        """Change what makes the channels of a group, and the weights that read them."""
        for change in (*group.weights, *group.producers):
            parameter = self.model.get_parameter(change.name)
            parameter.data = change.apply(parameter, vector)
            self.changed.add(change.name)
        self.statistics.update((path, statistics) for path in group.layers)
