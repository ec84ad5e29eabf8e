"""What is known of a compilation: the IR of every stage, the kernels, the report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xdsl.dialects.builtin import ModuleOp, TensorType

from gqc.dialects import fx, gq, tile
from gqc.dialects.text import parse_ir, print_ir
from gqc.errors import GqcError
from gqc.passes.helpers import layer_name, weight_of
from gqc.passes.pipeline import Stage, run_stages
from gqc.report import Report, Row
from gqc.targets import TARGETS

if TYPE_CHECKING:
    from torch import nn


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
    def backend(self) -> str:
        return TARGETS[self.target].backend

    @property
    def suffix(self) -> str:
        """File suffix of the source."""
        return {"cpu": ".ll", "triton": ".py"}[self.backend]

    @cached_property
    def ir(self) -> str:
        """Tile IR."""
        return print_ir(self.op)

    @cached_property
    def source(self) -> str:
        """Triton source in Python, or LLVM IR for a CPU."""
        if self.backend == "cpu":
            from gqc.codegen.cpu import emit
        else:
            from gqc.codegen.triton import emit
        return emit(self.op)

    @cached_property
    def artifacts(self) -> Any:
        """What Triton makes of the kernel for its GPU, offline: PTX, SASS, registers, spills.

        Raises GqcError for a CPU kernel.
        """
        if self.backend == "cpu":
            raise GqcError(f"{self.name} is a CPU kernel: see `assembly`")
        from gqc.codegen.triton import compile_offline

        return compile_offline(self.op, self.target)

    @cached_property
    def assembly(self) -> str:
        """Machine code as text: SASS or amdgcn for a GPU, assembly for this CPU."""
        if self.backend == "cpu":
            from gqc.codegen.cpu import assembly

            return assembly(self.op)
        return self.artifacts.sass or self.artifacts.amdgcn

    def __deepcopy__(self, memo: dict) -> Kernel:
        return self

    def __reduce__(self) -> tuple:
        return restore_kernel, (print_ir(self.op),)

    def __repr__(self) -> str:
        return f"Kernel({self.name!r}, target={self.target!r})"


@dataclass(frozen=True, eq=False)
class Compilation:
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

    def __deepcopy__(self, memo: dict) -> Compilation:
        return self

    def __reduce__(self) -> tuple:
        parts = (print_ir(self.source), print_ir(self.result))
        return restore, (*parts, self.stages, self.summary)


def restore_kernel(text: str) -> Kernel:
    """A kernel from the text that it is pickled as."""
    op = parse_ir(text).body.block.first_op
    assert isinstance(op, tile.KernelOp)
    return Kernel(op)


def restore(source: str, result: str, *rest: Any) -> Compilation:
    """A compilation from the texts that it is pickled as."""
    return Compilation(parse_ir(source), parse_ir(result), *rest)


def attach(model: nn.Module, compilation: Compilation) -> nn.Module:
    """Give a compiled model its `compilation`, `ir`, `kernels` and `report`."""
    model.compilation = compilation  # pyright: ignore[reportArgumentType]
    model.ir = compilation.ir  # pyright: ignore[reportArgumentType]
    model.kernels = compilation.kernels  # pyright: ignore[reportArgumentType]
    model.report = compilation.report  # pyright: ignore[reportArgumentType]
    return model


class Dump:
    """A folder of numbered IR files, one after each pass, and of kernels."""

    STAGE_ENDS = ("grouped", "legal", "kernels")
    """The last pass of these has written the same module."""

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        (self.folder / "kernels").mkdir(parents=True, exist_ok=True)
        self.count = 0

    def after(self, name: str, module: ModuleOp) -> None:
        """Write the module that a pass left."""
        if name not in self.STAGE_ENDS:
            (self.folder / f"{self.count:02}_{name}.mlir").write_text(print_ir(module))
            self.count += 1

    def kernels(self, kernels: list[Kernel]) -> None:
        """Write the tile IR and the source of every kernel."""
        for kernel in kernels:
            path = self.folder / "kernels" / kernel.name
            path.with_name(f"{kernel.name}.mlir").write_text(kernel.ir)
            path.with_name(kernel.name + kernel.suffix).write_text(kernel.source)


def rows_of(module: ModuleOp) -> Iterator[Row]:
    """Report rows of a module that keeps the legal contract: its matmuls, then other weights."""
    reported: set[str] = set()
    for op in module.walk():
        if isinstance(op, gq.MatmulTOp) and (weight := weight_of(op.weight)) is not None:
            reported.add(weight.key)
            yield matmul_row(op)
    for op in module.walk():
        if isinstance(op, gq.WeightOp) and op.key not in reported:
            shape = gq.tensor_shape(op.result)
            users = [
                u.operation.callee.data
                for u in op.result.uses
                if isinstance(u.operation, fx.CallOp)
            ]
            if len(shape) >= 2 and users:
                reported.add(op.key)
                reason = f"read by {', '.join(sorted(set(users)))}, which is no linear layer"
                yield Row(op.key, op.key, shape, "kept", reason, *dense(op.result.type))


def matmul_row(op: gq.MatmulTOp) -> Row:
    """The row of one matmul."""
    assert op.decision is not None
    decision, reason = op.decision.kind.data, op.decision.reason.data
    shape = gq.tensor_shape(op.weight)
    source = op.weight.owner.operands[0] if isinstance(op.weight.owner, gq.DcastOp) else op.weight
    weight, type_ = weight_of(source), gq.block_scaled(source)
    assert weight is not None
    cost = dense(op.weight.type)
    if type_ is not None:
        cost = format_of(type_), type_.bits_per_element(shape)
    return Row(layer_name(op), weight.key, shape, decision, reason, *cost)


def format_of(type_: gq.BlockScaledType) -> str:
    """How a report writes a block-scaled type."""
    return str(type_).removeprefix("!gq.block_scaled<").removesuffix(">")


def dense(type_: Any) -> tuple[str, float]:
    """Format and bits of a dense tensor."""
    assert isinstance(type_, TensorType)
    element = type_.get_element_type()
    return str(element), float(getattr(element, "bitwidth", 0))
