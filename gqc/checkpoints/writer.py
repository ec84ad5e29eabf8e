"""What writers share: the forms of weights, and how a format stores them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gqc.checkpoints.weights import Permuted, Prescaled, Rotated, Transposed, Weight
from gqc.formats.block_scaled import BlockScaled

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType
    from gqc.schemes import Scheme

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Wrapper:
    """One row: a class around a weight, and its fields, a number and a tensor, if it has them."""

    kind: type
    number: str | None = None
    tensor: str | None = None


WRAPPERS: dict[str, Wrapper] = {
    "Permuted": Wrapper(Permuted, number="dim", tensor="order"),
    "Prescaled": Wrapper(Prescaled, tensor="factor"),
    "Rotated": Wrapper(Rotated, number="block"),
    "Transposed": Wrapper(Transposed),
}


@dataclass(frozen=True)
class Form:
    """What is known of a quantized weight without its numbers.

    shape: of its codes. wrappers: what it is wrapped in, the outermost first, by its name in
    `WRAPPERS` and its number, None without one. origin: what quantized it, where that is known.
    """

    type: BlockScaledType
    shape: tuple[int, ...]
    wrappers: tuple[tuple[str, int | None], ...] = ()
    activation: Scheme | None = None
    origin: str = ""

    @property
    def names(self) -> list[str]:
        """Names of the wrappers."""
        return [name for name, _ in self.wrappers]


def unwrapped(weight: Weight) -> tuple[list[tuple[str, Any]], BlockScaled | torch.Tensor]:
    """The wrappers of a weight by name, the outermost first, and what is in them."""
    wrappers = []
    while not isinstance(weight, torch.Tensor | BlockScaled):
        wrappers.append((type(weight).__name__, weight))
        weight = weight.weight
    return wrappers, weight


def form_of(weight: Weight, activation: Scheme | None, origin: str = "") -> Form | None:
    """The form of a weight; None for a dense one."""
    wrappers, inner = unwrapped(weight)
    if isinstance(inner, torch.Tensor):
        return None
    numbers = ((name, getattr(each, WRAPPERS[name].number or "", None)) for name, each in wrappers)
    return Form(inner.type, tuple(inner.codes.shape), tuple(numbers), activation, origin)


class Writer(ABC):
    """How one format stores quantized weights; dense parameters are stored as they are.

    A writer is made for one checkpoint, whose forms by name it is given, all of them beforehand
    where it is `selective`: where there are weights that the format cannot hold.
    """

    selective: ClassVar[bool] = False
    fused: ClassVar[Sequence[Sequence[str]]] = ()
    """Last parts of the names of layers that are to have one tensor scale, if they have any."""

    @staticmethod
    def tensor_scale(scale: torch.Tensor) -> torch.Tensor:
        """The tensor scale nearest to one that the format has."""
        return scale

    def __init__(self, forms: dict[str, Form]):
        self.forms = forms

    def problem(self, name: str) -> str | None:
        """Why the format cannot hold a weight, and the remedy; None where it can."""
        return None

    def warn(self, config: dict[str, Any]) -> None:  # noqa: B027  nothing to warn of
        """Warn of what loaders of the format make of weights in a model of this config."""

    @abstractmethod
    def parts(self, name: str, weight: Weight, scale: torch.Tensor | None) -> Tensors:
        """The tensors that a weight is stored as, by their full names.

        scale: the tensor scale of the layer's input, a float32 scalar, where it is static.
        """

    @abstractmethod
    def quantization(self, dense: Sequence[str]) -> dict[str, Any]:
        """The quantization config; `dense` are the matrices that are not quantized."""
