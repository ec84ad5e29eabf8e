"""What quantizing a model gives: its weights by name, and what became of each layer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gqc.checkpoints.source import Origin
from gqc.checkpoints.weights import Weight
from gqc.errors import GqcError
from gqc.frontend.signature import canonical_names
from gqc.schemes import Scheme, parse_scheme

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Fact:
    """What became of one layer. Errors are ratios of signal to noise in dB, None if unknown.

    scheme: its text; empty if the layer is kept. sqnr: of the weight. output_sqnr: of the layer's
    outputs on the calibration inputs, from the weight's errors alone; input_sqnr: of the same, from
    the errors of the layer's quantized input alone. reason: why it is kept, or what its scheme
    asked for and did not get. reordered: whether its input channels are in another order than the
    model had them, as the rows of the layers before are.
    """

    layer: str
    weight: str
    scheme: str
    sqnr: float | None = None
    output_sqnr: float | None = None
    rows: int = 0
    """Rows of input that calibration gave the layer."""
    reason: str = ""
    reordered: bool = False
    input_sqnr: float | None = None

    @property
    def note(self) -> str:
        """What there is to say of the layer, in words."""
        return "; ".join(filter(None, (self.reason, "input reordered" if self.reordered else "")))


@dataclass
class Quantized:
    """A quantized model in memory: a `gqc.checkpoints.source.Source`.

    model: a copy of the model on the same storage, but for the dense parameters that changed
    (norms that took a factor, biases that moved); weights that are quantized are in it as they
    were before. facts: one for each linear layer, in the order of the model.
    """

    model: nn.Module
    weights: dict[str, Weight]
    activations: dict[str, Scheme]
    input_scales: dict[str, torch.Tensor]
    facts: tuple[Fact, ...]
    config: dict[str, Any] = field(default_factory=dict)

    def names(self) -> list[str]:
        """Names of parameters and of buffers in the state dict.

        Of tied ones the first, and that of a quantized weight which an embedding keeps dense.
        """
        state = self.model.state_dict(keep_vars=True)
        return [*dict.fromkeys((*canonical_names(state).values(), *self.weights))]

    def read(self, name: str) -> Weight:
        """A quantized weight or a dense tensor. Raises GqcError on names that there are not."""
        if name in self.weights:
            return self.weights[name]
        state = self.model.state_dict()
        if name not in state:
            raise GqcError(f"the model has no parameter {name}")
        return state[name]

    def origin(self, name: str) -> Origin:
        """What quantized a weight; `dense` for one that nothing did."""
        fact = next((f for f in self.facts if f.weight == name and f.scheme), None)
        if fact is None:
            return Origin("dense")
        scheme = parse_scheme(fact.scheme)
        return Origin(
            " ".join((*scheme.transforms, scheme.quantizer, scheme.scale_rule)), fact.sqnr
        )

    def activation(self, name: str) -> Scheme | None:
        """How the input of the layer with this weight is quantized, None where it is not."""
        return self.activations.get(name)

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The tensor scale of that input, a float32 scalar, where its scheme is static."""
        return self.input_scales.get(name)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(title="gqc.quantize")
        for title in ("layer", "scheme", "weight dB", "output dB", "input dB", "inputs", "note"):
            table.add_column(title, overflow="fold")
        for fact in self.facts:
            known = fact.sqnr, fact.output_sqnr, fact.input_sqnr
            numbers = ["" if n is None else f"{n:.1f}" for n in known]
            cells = (fact.layer, fact.scheme or "kept", *numbers, str(fact.rows), fact.note)
            table.add_row(*map(Text, cells))
        yield table

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()


def config_of(model: nn.Module) -> dict[str, Any]:
    """The model's config as `config.json` has it, empty where there is none."""
    to_dict = getattr(getattr(model, "config", None), "to_dict", None)
    config: Any = to_dict() if callable(to_dict) else {}
    return config
