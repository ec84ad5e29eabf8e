"""The report: what happened to each layer, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gqc.schemes import wildcard

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


INPUT_COST = (
    "outputs dB: signal over the noise that quantized activations alone bring into a layer's "
    "outputs; where it is empty, calibration= or example_inputs= of an nn.Module tell it"
)

CastKey = tuple[str, str, str]
"""What a quantized weight is known by: its name, its format, and how it was quantized."""


@dataclass(frozen=True)
class Row:
    """One layer: its weight's name, shape, format and cost, and its fate."""

    layer: str
    weight: str
    format: str
    method: str
    """Quantizer and scale rule; empty where nothing was quantized."""
    shape: tuple[int, ...]
    decision: str
    reason: str
    bits: float
    """Storage for one element in bits, scales and zero points included, padding not."""
    bytes: int
    """Storage in bytes, padding included."""
    sqnr: float | None = None
    """Signal over quantization noise of the weight in dB; None where nothing was quantized."""
    kernels: tuple[str, ...] = ()
    activation: str = ""
    """Format that the layer's input is quantized to as the model runs; empty where it is left."""
    input_sqnr: float | None = None
    """Signal over noise of the layer's outputs in dB, from the errors of its quantized input alone,
    on example or calibration inputs; None without."""
    channels: str = ""
    """What is done to the channels of the layer's input as the model runs, and why not before."""
    launch: str = ""
    """What else is computed in the same launch, or why other layers are not."""
    batch: str = ""
    """Why the bits of a row of the layer's outputs depend on the batch that it is in; empty where
    they do not, and of a layer that is kept."""

    @property
    def key(self) -> CastKey:
        """What rows of one stored weight share."""
        return self.weight, self.format, self.method


@dataclass(frozen=True)
class Report:
    """Rows in the order of the model. Prints as a table, alike layers on one line."""

    target: str
    rows: tuple[Row, ...]

    @property
    def bytes(self) -> int:
        """Storage of all weights in bytes; one that layers share counts once."""
        return sum({row.key: row.bytes for row in self.rows}.values())

    def completed(self, noise: Mapping[CastKey, float]) -> Report:
        """The report with SQNR in dB of quantized weights."""
        rows = (replace(row, sqnr=noise.get(row.key, row.sqnr)) for row in self.rows)
        return Report(self.target, tuple(rows))

    def measured(self, costs: Mapping[str, float]) -> Report:
        """The report with what quantized inputs cost, in dB by layer."""
        rows = (
            replace(row, input_sqnr=costs.get(row.layer)) if row.activation else row
            for row in self.rows
        )
        return Report(self.target, tuple(rows))

    def lowered(
        self, kernels: Mapping[tuple[str, str], tuple[str, ...]], channels: Mapping[str, str]
    ) -> Report:
        """The report with kernels by layer and weight, and what is done to channels by layer."""
        rows = (
            replace(
                row,
                kernels=kernels.get((row.layer, row.weight), ()),
                channels=channels.get(row.layer, ""),
            )
            for row in self.rows
        )
        return Report(self.target, tuple(dict.fromkeys(rows)))  # a layer may be called twice

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=150, color_system=None)
        with console.capture() as capture:
            console.print(self)
        return capture.get()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=f"gqc for {self.target}")
        table.add_column("layer", overflow="fold")
        table.add_column("N×K", justify="right")
        table.add_column("format", overflow="fold")
        for title in ("bits/weight", "SQNR dB", "MB"):
            table.add_column(title, justify="right")
        table.add_column("decision")
        table.add_column("kernels")
        quantizes = any(row.activation for row in self.rows)
        if quantizes:
            table.add_column("activations", overflow="fold")
            table.add_column("outputs dB", justify="right")
        notes = list(dict.fromkeys(note for row in self.rows for note in notes_of(row)))
        kernels = list(dict.fromkeys(row.kernels for row in self.rows if row.kernels))
        for group in group_rows(self.rows):
            first = group[0]
            kernel = f"k{kernels.index(first.kernels) + 1}" if first.kernels else ""
            numbers = [notes.index(note) + 1 for note in notes_of(first)]
            line = [*cells(group, numbers), kernel]
            if quantizes:
                line += [first.activation, spread([row.input_sqnr for row in group])]
            table.add_row(*map(Text, line))  # as Text, a name in brackets is no markup
        yield table
        quantized = [row for row in self.rows if row.decision != "kept"]
        count = f"{len(quantized)} of {len(self.rows)} weights quantized"
        yield f"{count}; weights take {self.bytes / 1e6:.1f} MB"
        if quantized:
            yield Text(same_bits(quantized))
        if quantizes:
            yield Text(INPUT_COST)
        for number, reason in enumerate(notes, 1):
            yield Text(f"({number}) {reason}")
        for number, names in enumerate(kernels, 1):
            yield Text(f"k{number} {compact(names)}")


def group_rows(rows: Sequence[Row]) -> list[list[Row]]:
    """Rows that differ only in a number of the layer's name (and in weight and SQNRs), together."""
    groups: dict[tuple, list[Row]] = {}
    for row in rows:
        channels = wildcard(row.channels)
        launch = wildcard(row.launch)
        alike = {"layer": wildcard(row.layer), "channels": channels, "launch": launch}
        key = replace(row, **alike, weight="", sqnr=None, input_sqnr=None)
        groups.setdefault((key,), []).append(row)
    return list(groups.values())


def notes_of(row: Row) -> list[str]:
    """What is said of a row below the table."""
    return [row.reason, *filter(None, map(wildcard, (row.channels, row.launch, row.batch)))]


def same_bits(rows: Sequence[Row]) -> str:
    """In how many quantized layers a row's bits are the same in any batch."""
    alike = sum(not row.batch for row in rows)
    also = "" if alike == len(rows) else "; in all of them with deterministic='batch'"
    return (
        f"a row's bits are the same in any batch in {alike} of {len(rows)} quantized layers{also}"
    )


def compact(names: Sequence[str]) -> str:
    """Names of kernels, the buckets of one matmul together: `matmul_…_{m16, any}`."""
    stems: dict[str, list[str]] = {}
    for stem, _, bucket in (name.rpartition("_") for name in names):
        stems.setdefault(stem, []).append(bucket)
    return ", ".join(f"{stem}_{{{', '.join(buckets)}}}" for stem, buckets in stems.items())


def cells(group: Sequence[Row], notes: Sequence[int]) -> list[str]:
    """The line of a table for alike layers; `notes` are the numbers of what is said below."""
    first = group[0]
    name = first.layer if len(group) == 1 else f"{wildcard(first.layer)} ({len(group)})"
    megabytes = sum(row.bytes for row in group) / 1e6
    shape = "×".join(map(str, first.shape))
    decision = f"{first.decision} ({', '.join(map(str, notes))})"
    noise = spread([row.sqnr for row in group])
    return [name, shape, first.format, f"{first.bits:.4g}", noise, f"{megabytes:.2f}", decision]


def spread(ratios: Sequence[float | None]) -> str:
    """The least and the greatest of those that are known, if they differ in print."""
    known = sorted(ratio for ratio in ratios if ratio is not None)
    ends = dict.fromkeys(f"{ratio:.1f}" for ratio in (*known[:1], *known[-1:]))
    return "…".join(ends)
