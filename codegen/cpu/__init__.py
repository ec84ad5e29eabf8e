"""CPU: tile IR to the llvm dialect, and its just-in-time compilation."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import StringAttr

if TYPE_CHECKING:
    from xdsl.dialects.builtin import ModuleOp

    from gqc.codegen.cpu.isa import Isa
    from gqc.dialects.tile import KernelOp


def tier(kernel: KernelOp, isa: str | None) -> Isa:
    """The tier asked for, or else the one the kernel was made for."""
    from gqc.codegen.cpu.isa import resolve

    target = kernel.attributes.get("target")
    return resolve(isa, target.data if isinstance(target, StringAttr) else None)


def lower(kernel: KernelOp, isa: str | None = None) -> ModuleOp:
    """The kernel in the `llvm` dialect, for a tier of `gqc.codegen.cpu.isa`."""
    from gqc.codegen.cpu import lowering

    return lowering.lower(kernel, tier(kernel, isa))


def emit(kernel: KernelOp, isa: str | None = None) -> str:
    """The kernel as LLVM IR text, before optimization."""
    from gqc.codegen.cpu import jit

    return jit.llvm_text(kernel, tier(kernel, isa))


def assembly(kernel: KernelOp, isa: str | None = None) -> str:
    """The kernel's assembly for a tier, on this machine or the tier's; `aarch64` is NEON's."""
    from gqc.codegen.cpu import jit

    row = tier(kernel, "neon" if isa == "aarch64" else isa)
    return jit.assembly(kernel, row, jit.foreign(row))


def load(kernel: KernelOp, isa: str | None = None) -> Callable[..., None]:
    """A function of tensors, in the order of the kernel's arguments, that runs the kernel here."""
    from gqc.codegen.cpu import jit

    return jit.load(kernel, tier(kernel, isa))
