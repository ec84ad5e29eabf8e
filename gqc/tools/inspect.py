"""`gqc inspect`: compile printed kernels offline, judge them by the gates, predict their time."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from xdsl.utils.exceptions import ParseError, VerifyException

from gqc.codegen.triton import compile_many, emit
from gqc.codegen.triton.gates import Verdict, judge
from gqc.codegen.triton.offline import KernelArtifacts
from gqc.codegen.triton.roofline import Estimate, estimate
from gqc.codegen.triton.source import read_source
from gqc.dialects.text import one_line, parse_ir
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError


@dataclass(frozen=True)
class Inspection:
    """One kernel on one target."""

    built: KernelArtifacts
    estimate: Estimate
    verdicts: list[Verdict]

    @property
    def failed(self) -> bool:
        return any(verdict.failed for verdict in self.verdicts)

    @property
    def waits_per_matrix(self) -> float:
        """Waits for barriers in the main loop, for each matrix instruction there."""
        loop = self.built.main_loop
        products = sum(i.is_matrix for i in loop)
        waits = sum(i.opcode.startswith(("WARPGROUP.DEPBAR", "SYNCS.PHASECHK")) for i in loop)
        return waits / products if products else 0.0

    def as_json(self) -> dict:
        """What the command prints, in plain values."""
        built = self.built
        return {
            "kernel": built.source.name,
            "target": built.target,
            "triton": built.triton,
            **asdict(built.resources),
            "waits_per_matrix_instruction": self.waits_per_matrix,
            **asdict(self.estimate),
            "gates": [
                {"gate": v.gate.name, "required": v.gate.required, "fault": v.fault}
                for v in self.verdicts
            ],
        }


def inspect(
    path: Path, target: str | None = None, python: str = sys.executable, rows: int | None = None
) -> list[Inspection]:
    """Inspect a printed kernel (.py), a kernel's IR (.mlir), or every kernel of a dump's folder.

    target: the kernel's own by default. python: one with the Triton to compile with. rows: a tile's
    by default. Raises GqcError for a path without GPU kernels, and for what does not compile.
    """
    if rows is not None and rows < 1:
        raise GqcError(f"a kernel runs on at least one row, not {rows}")
    texts = [source_of(file) for file in files_of(path)]
    jobs = [(text, target or read_source(text).target) for text in texts]
    return [
        Inspection(built, estimate(built, rows or built.source.tile[0]), judge(built))
        for built in compile_many(jobs, python)
    ]


def files_of(path: Path) -> list[Path]:
    """The kernels at a path: the file, or a dump's printed Triton kernels."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise GqcError(f"{path}: no such file or folder")
    folder = path / "kernels" if (path / "kernels").is_dir() else path
    if files := sorted(folder.glob("*.py")):
        return files
    raise GqcError(f"{path}: no Triton kernels there; a dump for a CPU holds none")


def source_of(path: Path) -> str:
    """The printed source of a kernel: a .py as it is, a .mlir printed."""
    try:
        if path.suffix == ".mlir":
            text = emit(only_kernel(path.read_bytes(), path.name))
        else:
            text = path.read_text(encoding="utf-8")
        read_source(text)
    except ParseError as error:
        where = error.span.get_location()
        raise GqcError(f"{path}:{where.line}:{where.col}: {one_line(error.msg)}") from error
    except (OSError, UnicodeDecodeError, GqcError, VerifyException) as error:
        raise GqcError(f"{path}: {error}") from error
    return text


def only_kernel(text: bytes, name: str) -> KernelOp:
    kernels = [op for op in parse_ir(text, name).walk() if isinstance(op, KernelOp)]
    if len(kernels) != 1:
        raise GqcError(f"holds {len(kernels)} kernels: give a file of a dump's `kernels` folder")
    return kernels[0]
