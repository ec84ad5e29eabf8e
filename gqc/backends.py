"""The table of backends: what makes source, code and a launcher of a tile kernel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gqc.codegen import cpu, triton
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError

if TYPE_CHECKING:
    from gqc.driver.result import Kernel

Launcher = Callable[..., None]
"""Runs a kernel on (x [..., K], parts…, bias?, y [..., N]), contiguous, and writes y."""


@dataclass(frozen=True)
class Backend:
    """One row; `Target.backend` names it."""

    suffix: str
    """File suffix of the source."""
    emit: Callable[[KernelOp], str]
    """The source of a kernel."""
    load: Callable[[KernelOp], Launcher]
    """A kernel ready to run here."""
    compile_offline: Callable[[KernelOp, str], triton.KernelArtifacts]
    """What a GPU's compiler makes of a kernel for a target."""
    assembly: Callable[[Kernel], str]
    """Machine code as text."""


def no_artifacts(kernel: KernelOp, target: str) -> triton.KernelArtifacts:
    """Raise GqcError: only GPUs have PTX, registers and spills to look at."""
    raise GqcError(f"{kernel.sym_name.data} is a CPU kernel: see `assembly`")


BACKENDS: dict[str, Backend] = {
    "cpu": Backend(
        suffix=".ll",
        emit=cpu.emit,
        load=cpu.load,
        compile_offline=no_artifacts,
        assembly=lambda kernel: cpu.assembly(kernel.op),
    ),
    "triton": Backend(
        suffix=".py",
        emit=triton.emit,
        load=triton.load,
        compile_offline=triton.compile_offline,
        assembly=lambda kernel: kernel.artifacts.assembly,
    ),
}
