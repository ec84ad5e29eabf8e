"""What a search finds: a scheme map, and what it was chosen by."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


@dataclass(frozen=True)
class Chosen:
    """One layer, the scheme chosen for it, and what that costs; or a layer that is kept.

    scheme: its text; empty if the layer is kept, for `reason`, which else says which candidates do
    not fit. bits: storage of one element, scales and zero points included. microseconds: predicted,
    for one token. sensitivities: what each candidate alone does to the model's outputs.
    """

    layer: str
    weight: str
    shape: tuple[int, int]
    scheme: str
    bits: float
    microseconds: float
    sensitivities: dict[str, float]
    reason: str = ""

    @property
    def sensitivity(self) -> float:
        """That of the chosen scheme."""
        return self.sensitivities[self.scheme]


class Found(dict[str, str]):
    """A plain map from names of layers to schemes, for `scheme=`; prints as a table.

    layers: one for each linear layer of the model, in its order; layers of one weight have one
    scheme. target, rates: the machine that times are predicted for, and whence its figures are.
    """

    def __init__(self, layers: Sequence[Chosen], target: str, rates: str):
        super().__init__({each.layer: each.scheme for each in layers if each.scheme})
        self.layers, self.target, self.rates = tuple(layers), target, rates

    @property
    def chosen(self) -> list[Chosen]:
        """The layers that are quantized."""
        return [each for each in self.layers if each.scheme]

    @property
    def weights(self) -> list[Chosen]:
        """The first of the layers of each quantized weight."""
        return [*{each.weight: each for each in reversed(self.chosen)}.values()][::-1]

    @property
    def bits(self) -> float:
        """Mean bits of an element of the quantized weights, scales and zero points included."""
        elements = sum(math.prod(each.shape) for each in self.weights)
        return sum(each.bits * math.prod(each.shape) for each in self.weights) / elements

    @property
    def microseconds(self) -> float:
        """Predicted time of all quantized layers for one token."""
        return sum(each.microseconds for each in self.chosen)

    @property
    def sensitivity(self) -> float:
        """Sum over the weights: what the model's outputs lose, if losses add up."""
        return sum(each.sensitivity for each in self.weights)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"gqc.search for {self.target}")
        for title in ("layer", "N×K", "scheme", "bits/weight", "µs", "sensitivity", "note"):
            right = title in ("N×K", "bits/weight", "µs", "sensitivity")
            table.add_column(title, overflow="fold", justify="right" if right else "left")
        for each in self.layers:
            costs = (f"{each.bits:.4g}", f"{each.microseconds:.3g}") if each.scheme else ("", "")
            loss = f"{each.sensitivity:.2e}" if each.scheme else ""
            shape = "×".join(map(str, each.shape))
            row = (each.layer, shape, each.scheme or "kept", *costs, loss, each.reason)
            table.add_row(*map(Text, row))
        yield table
        yield Text(
            f"{self.bits:.4f} bits/weight, {self.microseconds:.4g} µs a token ({self.rates}), "
            f"sensitivities sum to {self.sensitivity:.3e}"
        )

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()
