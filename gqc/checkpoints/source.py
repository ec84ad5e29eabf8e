"""Where weights come from: a checkpoint, a model just quantized, a checkpoint on its way."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import torch

    from gqc.checkpoints.weights import Weight
    from gqc.checkpoints.writer import Form
    from gqc.schemes import Scheme


@dataclass(frozen=True)
class Origin:
    """What quantized a weight: a method or a format of files, and the SQNR in dB where known."""

    method: str
    sqnr: float | None = None


class Source(Protocol):
    """Parameters by their names in the dense model, each made when it is asked for.

    config: the model's `config.json`, empty where it has none.
    """

    config: dict[str, Any]

    def names(self) -> list[str]:
        """Names of all parameters (`….down_proj.weight`), in the order to read them in."""
        ...

    def read(self, name: str) -> Weight:
        """A dense tensor or a quantized weight (`gqc.checkpoints.weights`). Raises GqcError."""
        ...

    def origin(self, name: str) -> Origin:
        """What quantized the weight of that name, once it has been read."""
        ...

    def activation(self, name: str) -> Scheme | None:
        """How the input of the layer with this weight is quantized, None where it is not."""
        ...

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The tensor scale of that input, a float32 scalar, where its scheme is static."""
        ...


@runtime_checkable
class Outlined(Source, Protocol):
    """A source that says what it will give, and gives the same each time.

    What is saved of it is checked before any of it is made, and goes on after an interruption.
    """

    def form(self, name: str) -> Form | None:
        """The form of a weight; None for a dense one."""
        ...

    def bytes_of(self, name: str) -> int:
        """Bytes that are read to make a parameter."""
        ...

    def fingerprint(self) -> str:
        """What differs where anything that is given does: the inputs, and what is done to them."""
        ...
