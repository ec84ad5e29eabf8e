"""gqc-opt: the mlir-opt of this project.

Reads IR, runs passes (`-p "recognize-linears,legalize{target=sm_90}"`) and prints IR, or kernels
(`-t triton`, `-t llvm`). Everything xdsl-opt does is here too. It starts fast: passes and emitters
are imported when a command line names them, torch and triton only when one of those needs them.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError
from xdsl.utils.target import Target
from xdsl.xdsl_opt_main import xDSLOptMain

from gqc.errors import GqcError

if TYPE_CHECKING:
    from gqc.dialects.tile import KernelOp


def tile_kernels(module: ModuleOp, backend: str | None = None) -> list[KernelOp]:
    """Every `tile.kernel` of the module, in order; an error if there is none, or one of another
    backend than asked for (a kernel may say no target)."""
    from gqc.dialects.tile import KernelOp
    from gqc.targets import TARGETS

    kernels = [op for op in module.walk() if isinstance(op, KernelOp)]
    if not kernels:
        raise DiagnosticException(
            "no tile.kernel in this module: run lower-to-tile first, or read a kernels-stage dump"
        )
    for kernel in kernels:
        target = TARGETS.get(str(kernel.attributes.get("target")).strip('"'))
        if backend is not None and target is not None and target.backend != backend:
            raise DiagnosticException(
                f"kernel {kernel.sym_name.data} is tiled for {target.name}, not for {backend}"
            )
    return kernels


@dataclass(frozen=True)
class TritonTarget(Target):
    """Each tile kernel as a Triton source file: `-t triton`."""

    name = "triton"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        kernels = tile_kernels(module, "triton")
        from gqc.codegen import triton

        output.write("\n\n".join(map(triton.emit, kernels)))


@dataclass(frozen=True)
class PTXTarget(Target):
    """Each tile kernel as PTX, compiled by Triton without a GPU: `-t ptx`."""

    name = "ptx"

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        kernels = tile_kernels(module, "triton")
        from gqc.codegen import triton

        jobs = [(kernel, str(kernel.attributes["target"]).strip('"')) for kernel in kernels]
        for (_, target), built in zip(jobs, triton.compile_many(jobs), strict=True):
            if built.ptx is None:
                raise DiagnosticException(f"{target} has no PTX")
            output.write(built.ptx)


@dataclass(frozen=True)
class LLVMTarget(Target):
    """Each tile kernel as LLVM IR: `-t llvm` for its target, `-t "llvm{isa=avx2}"` for a tier."""

    name = "llvm"
    isa: str | None = None

    def emit(self, ctx: Context, module: ModuleOp, output: IO[str]) -> None:
        kernels = tile_kernels(module, "cpu")
        from gqc.codegen import cpu

        for kernel in kernels:
            target = str(kernel.attributes.get("target", "cpu_portable")).strip('"')
            try:
                output.write(cpu.emit(kernel, self.isa or target.removeprefix("cpu_")) + "\n")
            except ValueError as error:
                raise DiagnosticException(f"kernel {kernel.sym_name.data}: {error}") from error


class GqcOptMain(xDSLOptMain):
    """xdsl-opt with gqc's targets. Dialects and passes come with the `xdsl.universe`."""

    version_format = "gqc-opt built on xDSL {xdsl_version}"

    def register_all_targets(self) -> None:
        super().register_all_targets()
        self.available_targets |= {
            "triton": lambda: TritonTarget,
            "ptx": lambda: PTXTarget,
            "llvm": lambda: LLVMTarget,
        }

    def setup_pipeline(self) -> None:
        try:
            super().setup_pipeline()
        except (ValueError, ArgSpecParseError) as error:  # an unknown pass, a wrong option
            raise DiagnosticException(str(error)) from error


def main(driver: type[GqcOptMain] = GqcOptMain) -> None:
    """Run gqc-opt, or your own kind of it, on `sys.argv`.

    What is wrong with the input is said without a traceback.
    """
    try:
        driver(description="gqc optimizer driver").run()
    except (GqcError, DiagnosticException, ParseError, OSError) as error:
        sys.exit(f"gqc-opt: {error}")


if __name__ == "__main__":
    main()
