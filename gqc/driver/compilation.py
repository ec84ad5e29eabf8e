"""One model on its way through the compiler: what was asked for, and what is known so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.progress import Progress, TaskID
from torch import nn
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gqc.checkpoints.source import Source
from gqc.driver.report import CastKey, Report
from gqc.driver.result import Dump, Result
from gqc.driver.stored_weights import Stored
from gqc.frontend.signature import Imported
from gqc.passes.pipeline import Stage
from gqc.quantization.input_error import Measure
from gqc.schemes import SchemeLike
from gqc.targets import Target


@dataclass
class Compilation:
    """What the steps of `gqc.compile` read and add to. The first fields are its arguments."""

    model: Any
    example_inputs: Any
    scheme: SchemeLike | Mapping[str, SchemeLike] | None
    weights: Source | None
    target: str
    ignore: Sequence[str]
    lm_head: bool
    dynamic_shapes: Any
    calibration: Iterable[Any] | None
    deterministic: Literal["batch"] | None
    passes: Mapping[str, Sequence[ModulePass]]
    dump_ir: str | Path | None
    bar: Progress

    machine: Target = field(init=False)
    """The row of the target."""
    schemes: tuple[str, ...] = field(init=False)
    """`pattern=scheme` entries, first match first."""
    dump: Dump | None = None
    stored: Stored | None = None
    """The parameters of a source, if they are not the model's own."""
    measure: Measure = field(init=False)
    """What quantized inputs of layers cost."""
    layers: nn.Module | None = None
    """A copy of the model of which the linear layers alone are compiled; None if it is captured
    whole."""
    imported: Imported = field(init=False)
    """The IR, and the side store of weights."""
    source: ModuleOp = field(init=False)
    """The IR as it was imported."""
    stages: tuple[Stage, ...] = field(init=False)
    channels: dict[str, str] = field(default_factory=dict)
    """What is done to channels as the model runs, by layer."""
    costs: dict[str, float] = field(default_factory=dict)
    """Signal over noise of outputs in dB, from quantized inputs alone, by layer."""
    noise: dict[CastKey, float] = field(default_factory=dict)
    """SQNR in dB of quantized weights."""
    report: Report = field(init=False)
    result: Result = field(init=False)
    compiled: nn.Module = field(init=False)
    task: TaskID = field(init=False)

    def __post_init__(self) -> None:
        self.task = self.bar.add_task("capturing")

    @property
    def module(self) -> ModuleOp:
        """The IR as the last pass left it."""
        return self.imported.module

    @property
    def whole(self) -> bool:
        """Whether the model is captured whole."""
        from torch import fx
        from torch.export import ExportedProgram

        is_graph = isinstance(self.model, ExportedProgram | fx.GraphModule)
        return is_graph or self.example_inputs is not None
