"""What `gqc inspect` shows of a checkpoint, and `gqc quantize` of what it is to do: a table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gqc.checkpoints.writer import Form, form_of
from gqc.schemes import wildcard

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult

    from gqc.checkpoints.quantizing import Quantizing

SUFFIXES = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Files that are checkpoints, or that opening them says why they are not."""

EXTRA = {"activation": "inputs", "reason": "why dense"}
"""Columns that are left out where they are empty."""


def is_checkpoint(path: Path) -> bool:
    """Whether a path is of a checkpoint, and not of kernels."""
    if path.is_dir():
        names = [each.name for each in path.iterdir()]
        return "config.json" in names or any(name.endswith(SUFFIXES) for name in names)
    return path.suffix in SUFFIXES


@dataclass(frozen=True)
class Parameter:
    """One parameter: shape in the model, format, inputs' format, bytes; why it is dense."""

    name: str
    shape: tuple[int, ...]
    format: str
    activation: str
    bits: float
    bytes: int
    reason: str = ""

    @property
    def alike(self) -> tuple:
        """What parameters on one line share."""
        return (wildcard(self.name), self.shape, self.format, self.activation, self.reason)


@dataclass(frozen=True)
class Contents:
    """The parameters of a checkpoint. Prints as a table, alike ones on one line."""

    title: str
    parameters: tuple[Parameter, ...]

    @property
    def bytes(self) -> int:
        return sum(parameter.bytes for parameter in self.parameters)

    def as_json(self) -> list[dict[str, Any]]:
        return [vars(parameter) for parameter in self.parameters]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.table import Table
        from rich.text import Text

        table = Table(title=Text(self.title))
        table.add_column("parameter", overflow="fold")
        table.add_column("shape", justify="right")
        table.add_column("format", overflow="fold")
        for title in ("bits/weight", "MB"):
            table.add_column(title, justify="right")
        extra = [
            name for name in ("activation", "reason") if any(vars(p)[name] for p in self.parameters)
        ]
        for name in extra:
            table.add_column({"activation": "inputs", "reason": "why dense"}[name], overflow="fold")
        for group in grouped(p for p in self.parameters if len(p.shape) > 1):
            table.add_row(*map(Text, [*cells(group), *(vars(group[0])[name] for name in extra)]))
        if vectors := [p for p in self.parameters if len(p.shape) < 2]:
            size = sum(parameter.bytes for parameter in vectors)
            table.add_row(f"vectors and numbers ({len(vectors)})", "", "", "", f"{size / 1e6:.2f}")
        yield table
        yield f"{len(self.parameters)} parameters take {self.bytes / 1e6:.1f} MB"


def grouped(parameters: Iterable[Parameter]) -> list[list[Parameter]]:
    """Parameters that are alike but for numbers in their names, together."""
    groups: dict[tuple, list[Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.alike, []).append(parameter)
    return list(groups.values())


def cells(group: list[Parameter]) -> list[str]:
    """The line of a table for alike parameters."""
    first, size = group[0], sum(parameter.bytes for parameter in group)
    name = first.name if len(group) == 1 else f"{wildcard(first.name)} ({len(group)})"
    shape = "×".join(map(str, first.shape))
    return [name, shape, first.format, f"{first.bits:.4g}", f"{size / 1e6:.2f}"]


def inspect_checkpoint(path: Path) -> Contents:
    """The parameters of a checkpoint, each read, one at a time. Raises GqcError as readers do."""
    checkpoint = open_checkpoint(path)
    return Contents(f"{path}: {checkpoint.format}", tuple(parameters_of(checkpoint)))


def parameters_of(checkpoint: Checkpoint) -> Iterator[Parameter]:
    for name in checkpoint.names():
        weight = checkpoint.read(name)
        form = form_of(weight, checkpoint.activation(name))
        if form is None:
            yield dense(name, tuple(weight.shape), weight.dtype.itemsize, str(weight.dtype))  # pyright: ignore
        else:
            yield quantized(name, form)


def dense(name: str, shape: tuple[int, ...], width: int, dtype: str, reason: str = "") -> Parameter:
    size = math.prod(shape) * width
    return Parameter(name, shape, dtype.removeprefix("torch."), "", 8.0 * width, size, reason)


def quantized(name: str, form: Form) -> Parameter:
    """A quantized parameter, whose bytes are those of codes, scales and zero points, unpadded."""
    bits = form.type.bits_per_element(form.shape)
    text = form.type.text
    wrappers = "".join(
        f", {kind}" + (f" {n}" if n is not None else "") for kind, n in form.wrappers
    )
    transposed = "Transposed" in form.names
    shape = (*form.shape[:-2], form.shape[-1], form.shape[-2]) if transposed else form.shape
    x = "" if form.activation is None else str(form.activation)
    size = math.ceil(math.prod(shape) * bits / 8)
    return Parameter(name, tuple(shape), text + wrappers, x, bits, size)


def plan_of(source: Quantizing) -> Contents:
    """What is to become of each parameter."""
    parameters = []
    for name in source.names():
        form, spec = source.form(name), source.specs[name]
        if form is not None:
            parameters.append(quantized(name, form))
        else:
            width = spec.bytes // max(math.prod(spec.shape), 1)
            parameters.append(dense(name, spec.shape, width, spec.dtype, source.kept[name]))
    return Contents(f"{source.path} quantized", tuple(parameters))
