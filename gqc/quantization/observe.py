"""Statistics of the inputs of layers, those that read one input counted once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from gqc.errors import GqcError
from gqc.quantization.layers import Layer
from gqc.quantization.stream import Part, Stream
from gqc.quantizers import Statistics


class Apart(Exception):
    """Raised where a layer reads another input than the one that it shared it with till now."""


class Observer:
    """Statistics of the inputs of layers, by path.

    A layer that first reads what another has just read is taken to share its input, and its
    statistics are the other's; `apart` names those that are known not to.
    """

    def __init__(self, layers: Sequence[Layer], apart: set[str], seed: int):
        self.layers, self.apart = layers, apart
        self.statistics: dict[str, Statistics] = {}
        self.leaders: dict[str, str] = {}
        self.last: dict[str, torch.Tensor] = {}
        """What each layer that leads read last."""
        self.calls: Counter[str] = Counter()
        self.generator = torch.Generator().manual_seed(seed)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks on the layers."""
        hooks = [
            layer.module.register_forward_pre_hook(self.hook(layer), with_kwargs=True)
            for layer in self.layers
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()
            self.last.clear()

    def hook(self, layer: Layer) -> Any:
        def observe(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
            (x,) = (*args, *kwargs.values())
            leader = self.leaders.get(layer.path) or self.lead(layer, x)
            self.leaders[layer.path] = leader
            self.calls[layer.path] += 1
            if leader != layer.path:
                if self.last.get(leader) is not x:
                    raise Apart(layer.path)
                return
            self.last[layer.path] = x
            try:
                self.statistics[layer.path].update(x, self.generator)
            except ValueError as error:
                raise GqcError(f"{layer.path}: {error}") from error

        return observe

    def lead(self, layer: Layer, x: torch.Tensor) -> str:
        """The layer whose statistics are those of another, when it is called for the first time."""
        if layer.path not in self.apart:
            for path, last in self.last.items():
                if last is x:
                    return path
        self.statistics[layer.path] = Statistics.of(x.shape[-1])
        return layer.path

    def found(self) -> dict[str, Statistics]:
        """Statistics by the path of every layer; those of a layer never called have no rows.

        Raises Apart.
        """
        for path, leader in self.leaders.items():
            if self.calls[path] != self.calls[leader]:
                raise Apart(path)
        return {
            layer.path: self.statistics[self.leaders[layer.path]]
            if layer.path in self.leaders
            else Statistics.of(layer.matrix().shape[1])
            for layer in self.layers
        }


def observe(
    stream: Stream, part: Part, layers: Sequence[Layer], seed: int, step: Callable[[], None]
) -> dict[str, Statistics]:
    """Statistics of the inputs of layers, by path, from a run of all inputs through a part.

    `step` is called after each input. Raises GqcError on inputs that hold inf or NaN.
    """
    apart: set[str] = set()
    while True:
        observer = Observer(layers, apart, seed)
        try:
            with observer.watching():
                for _ in stream.run(part):
                    step()
            return observer.found()
        except Apart as found:  # rare: a router may call one layer without the other
            apart.add(str(found))
