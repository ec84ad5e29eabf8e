"""gqc-opt: the mlir-opt of this project.

Reads IR, runs passes (`-p "recognize-linears,legalize{target=sm_90}"`) and prints IR, or kernels
(`-t triton`, `-t llvm`). Everything xdsl-opt does is here too. It starts fast: passes and emitters
are imported when a command line names them, torch and triton only when one of those needs them.

What is wrong with the input is one line that says what and where, and status 1 (`said`).
"""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass, PassPipeline
from xdsl.utils.exceptions import ArgSpecParseError, DiagnosticException, ParseError
from xdsl.utils.target import Target
from xdsl.xdsl_opt_main import xDSLOptMain

from gqc.dialects.text import one_line, parse_module, verify_ir, where
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
            output.write(cpu.emit(kernel, self.isa or target.removeprefix("cpu_")) + "\n")


class GqcOptMain(xDSLOptMain):
    """xdsl-opt with gqc's targets. Dialects and passes come with the `xdsl.universe`."""

    version_format = "gqc-opt built on xDSL {xdsl_version}"
    doing = "reading the command line"
    """What is being done, for the report of an internal error."""

    def register_all_arguments(self, arg_parser: argparse.ArgumentParser) -> None:
        super().register_all_arguments(arg_parser)
        arg_parser.add_argument(
            "--debug", action="store_true", help="Print the traceback of an error."
        )

    def register_all_frontends(self) -> None:
        super().register_all_frontends()
        self.available_frontends["mlir"] = self.read

    def read(self, stream: IO[bytes]) -> ModuleOp:
        """Parse a module; `apply_passes` verifies it."""
        self.doing = f"reading {self.get_input_name()}"
        implicit = not self.args.no_implicit_module
        return parse_module(self.ctx, stream.read(), self.get_input_name(), implicit)

    def register_all_targets(self) -> None:
        super().register_all_targets()
        self.available_targets |= {
            "triton": lambda: TritonTarget,
            "ptx": lambda: PTXTarget,
            "llvm": lambda: LLVMTarget,
        }

    def setup_pipeline(self) -> None:
        """xDSL's pipeline, in which each pass is given what it takes, and leaves what is valid."""
        try:
            super().setup_pipeline()
        except (ValueError, ArgSpecParseError) as error:  # an unknown pass, a wrong option
            raise DiagnosticException(str(error)) from error
        also = self.pipeline.callback

        def between(
            previous: ModulePass | None, module: ModuleOp, following: ModulePass | None
        ) -> None:
            if not self.args.disable_verify:
                self.doing = "verifying the input" if previous is None else f"pass {previous.name}"
                verify_ir(module)
                if following is not None:
                    verify_input(module, following)
            if also is not None:
                also(previous, module, following)
            self.doing = f"pass {following.name}" if following is not None else "printing"

        self.pipeline = PassPipeline(self.pipeline.passes, between)

    def output_resulting_program(self, prog: ModuleOp) -> str:
        self.doing = f"printing for target {self.args.target}"
        return super().output_resulting_program(prog)


def verify_input(module: ModuleOp, pass_: ModulePass) -> None:
    """Raise VerifyException if a pass of gqc is given a module of another stage than it takes."""
    from gqc.passes import PASSES

    if pass_.name in PASSES:
        from gqc.passes.contracts import TAKES, verify_taken

        if pass_.name in TAKES:
            verify_taken(module, pass_.name)


KNOWN = (GqcError, DiagnosticException, ParseError, OSError)
"""Errors whose message says what is wrong with the input, and where."""


def said(error: BaseException, doing: str) -> str:
    """An error in one line: what is wrong with the input, or that it is gqc's own."""
    if isinstance(error, ParseError):
        near = f", at {one_line(error.span.content)[:40]!r}" if error.span.content else ""
        return f"{error.span.get_location()}: {one_line(error.msg)}{near}"
    if isinstance(error, KNOWN):
        return str(error).strip()
    op = getattr(error, "operation", None)
    place = "" if op is None else f", {where(op)}"
    return (
        f"internal error in {doing}{place}: {type(error).__name__}: {one_line(error)}; "
        "please report it (--debug shows the traceback)"
    )


def main(driver: type[GqcOptMain] = GqcOptMain, args: Sequence[str] | None = None) -> None:
    """Run gqc-opt, or your own kind of it, on `args` or else `sys.argv`.

    Exits with status 1 and one line on what is wrong with the input; `--debug` adds the traceback.
    """
    tool: GqcOptMain | None = None
    try:
        tool = driver(description="gqc optimizer driver", args=args)
        tool.run()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if tool is not None and tool.args.debug:
            traceback.print_exc()
        sys.exit(f"gqc-opt: {said(error, driver.doing if tool is None else tool.doing)}")


if __name__ == "__main__":
    main()
