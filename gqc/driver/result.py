"""What `gqc.compile` gives: the model, with the IR of every stage, the kernels, the report."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

from torch import nn
from xdsl.dialects.builtin import ModuleOp

from gqc.backends import BACKENDS, Backend
from gqc.dialects import tile
from gqc.dialects.text import parse_ir, print_ir
from gqc.driver.report import Report
from gqc.errors import GqcError
from gqc.passes.pipeline import Stage, run_stages
from gqc.targets import TARGETS

if TYPE_CHECKING:
    from gqc.codegen.triton import KernelArtifacts
    from gqc.codegen.triton.offline import Resources


@dataclass(frozen=True)
class Kernel:
    """One generated kernel: its IR, its source, and what a compiler for its target says of it."""

    op: tile.KernelOp

    @property
    def name(self) -> str:
        return self.op.sym_name.data

    @property
    def target(self) -> str:
        return self.op.attributes["target"].data  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def backend(self) -> Backend:
        return BACKENDS[TARGETS[self.target].backend]

    @cached_property
    def ir(self) -> str:
        """Tile IR."""
        return print_ir(self.op)

    @cached_property
    def source(self) -> str:
        """Triton source in Python, or LLVM IR for a CPU."""
        return self.backend.emit(self.op)

    @cached_property
    def assembly(self) -> str:
        """Machine code as text: SASS or amdgcn for a GPU, assembly for this CPU."""
        return self.backend.assembly(self)

    @cached_property
    def artifacts(self) -> KernelArtifacts:
        """What Triton makes of the kernel for its GPU, offline. Raises GqcError for a CPU kernel.

        `ptx`, `sass` and `resources` are parts of it.
        """
        return self.backend.compile_offline(self.op, self.target)

    @property
    def ptx(self) -> str:
        """PTX. Raises GqcError unless the kernel is for an NVIDIA GPU."""
        return self.nvidia(self.artifacts.ptx)

    @property
    def sass(self) -> str:
        """SASS, disassembled. Raises GqcError unless the kernel is for an NVIDIA GPU."""
        return self.nvidia(self.artifacts.sass)

    @property
    def resources(self) -> Resources:
        """Registers, spills, shared memory, matrix instructions. Raises GqcError for a CPU."""
        return self.artifacts.resources

    def nvidia(self, text: str | None) -> str:
        """A text that only NVIDIA's kernels have."""
        if text is None:
            raise GqcError(f"{self.name} is a kernel for {self.target}: see `assembly`")
        return text

    def __deepcopy__(self, memo: dict) -> Kernel:
        return self

    def __reduce__(self) -> tuple:
        return restore_kernel, (print_ir(self.op),)

    def __repr__(self) -> str:
        return f"Kernel({self.name!r}, target={self.target!r})"


@dataclass(frozen=True, eq=False)
class Result:
    """How one model was compiled. `source` is the captured module, `result` the last stage's."""

    source: ModuleOp
    result: ModuleOp
    stages: tuple[Stage, ...]
    summary: Report

    def ir(self, name: str = "kernels") -> str:
        """Text of the IR after a stage (`imported`, `grouped`, `legal`, `kernels`) or a pass.

        Passes run again on the captured module, without weights. Raises GqcError on other names.
        """
        texts: dict[str, str] = {}

        def after(done: str, module: ModuleOp) -> None:
            if done == name:
                texts[done] = print_ir(module)

        run_stages(self.source.clone(), self.stages, after)
        if name not in texts:
            passes = [p.name for stage in self.stages for p in stage.passes]
            known = ", ".join([*(stage.name for stage in self.stages), *passes])
            raise GqcError(f"no stage or pass is called {name!r}: there are {known}")
        return texts[name]

    @cached_property
    def kernels(self) -> list[Kernel]:
        """Every kernel the model may launch."""
        return [Kernel(op) for op in self.result.ops if isinstance(op, tile.KernelOp)]

    def report(self) -> Report:
        """What happened to each layer, and why; prints as a table."""
        return self.summary

    def __deepcopy__(self, memo: dict) -> Result:
        return self

    def __reduce__(self) -> tuple:
        parts = (print_ir(self.source), print_ir(self.result))
        return restore, (*parts, self.stages, self.summary)


def restore_kernel(text: str) -> Kernel:
    """A kernel from the text that it is pickled as."""
    op = parse_ir(text).body.block.first_op
    assert isinstance(op, tile.KernelOp)
    return Kernel(op)


def restore(source: str, result: str, *rest: Any) -> Result:
    """A compilation from the texts that it is pickled as."""
    return Result(parse_ir(source), parse_ir(result), *rest)


ATTACHED = ("compilation", "ir", "kernels", "report")
"""What a compiled model has of its own."""


class CompiledModel(nn.Module):
    """A compiled model, for type checkers: its class is the model's own, or `fx.GraphModule`."""

    compilation: Result
    kernels: list[Kernel]
    """Every kernel that it may launch."""

    def ir(self, name: str = "kernels") -> str:
        """Text of the IR after a stage (`imported`, `grouped`, `legal`, `kernels`) or a pass."""
        return self.compilation.ir(name)

    def report(self) -> Report:
        """What happened to each layer, and why; prints as a table."""
        return self.compilation.report()

    if TYPE_CHECKING:
        # What else the model has.
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, key: Any) -> Any: ...


def attach(model: nn.Module, result: Result) -> CompiledModel:
    """Give a compiled model its `compilation`, `ir`, `kernels` and `report`."""
    model.compilation = result  # pyright: ignore[reportArgumentType]
    model.ir = result.ir  # pyright: ignore[reportArgumentType]
    model.kernels = result.kernels  # pyright: ignore[reportArgumentType]
    model.report = result.report  # pyright: ignore[reportArgumentType]
    for module in model.modules():
        if is_pretrained(module):
            module.save_pretrained = refuse_saving  # pyright: ignore[reportArgumentType]
    return cast(CompiledModel, model)


def is_pretrained(module: nn.Module) -> bool:
    """Whether a module is a model of transformers, which writes all of its parameters."""
    transformers = sys.modules.get("transformers")
    return transformers is not None and isinstance(module, transformers.PreTrainedModel)


def refuse_saving(*args: Any, **kwargs: Any) -> NoReturn:
    """Raise GqcError: `from_pretrained` would not find the packed weights, and make others up."""
    raise GqcError(
        "a compiled model has packed weights, which from_pretrained does not read: write what "
        "gqc.quantize gives with gqc.save(quantized, folder), and read it with gqc.load(folder)"
    )


class Dump:
    """A folder of numbered IR files, one after each pass, and of kernels.

    Files that an earlier dump left there are removed.
    """

    STAGE_ENDS = ("grouped", "legal", "kernels")
    """The last pass of these has written the same module."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        try:
            (self.folder / "kernels").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise GqcError(f"cannot dump IR into {folder}: {error}") from error
        self.remove_earlier()
        self.count = 0

    def remove_earlier(self) -> None:
        """Remove files that bear the names of a dump: IR by number, sources beside their IR."""
        for path in self.folder.glob("[0-9][0-9]_*.mlir"):
            path.unlink()
        suffixes = [backend.suffix for backend in BACKENDS.values()]
        for path in (self.folder / "kernels").glob("*.mlir"):
            for suffix in suffixes:
                path.with_name(path.stem + suffix).unlink(missing_ok=True)
            path.unlink()

    def after(self, name: str, module: ModuleOp) -> None:
        """Write the module that a pass left."""
        if name not in self.STAGE_ENDS:
            (self.folder / f"{self.count:02}_{name}.mlir").write_text(
                print_ir(module), encoding="utf-8"
            )
            self.count += 1

    def kernels(self, kernels: list[Kernel]) -> None:
        """Write the tile IR and the source of every kernel."""
        for kernel in kernels:
            path = self.folder / "kernels" / kernel.name
            path.with_name(f"{kernel.name}.mlir").write_text(kernel.ir, encoding="utf-8")
            path.with_name(kernel.name + kernel.backend.suffix).write_text(
                kernel.source, encoding="utf-8"
            )
