"""Compile printed kernels for any GPU on a machine without one, and judge what came out.

Triton's wheel holds the assembler and disassembler; no driver is needed. Compilation runs in a
process of its own: of this Python, or of another environment's with another Triton.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from importlib.util import find_spec
from pathlib import Path

from gqc.codegen.triton.emitter import emit
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError

WORKER = Path(__file__).with_name("worker.py")
TENSOR_MEMORY_COLUMNS = 512
STUB = 100
"""A disassembly of no more instructions is no kernel: the assembler gave up silently."""


@dataclass(frozen=True)
class Machine:
    """What Triton calls a target, the matrix instruction expected there, and its shared memory."""

    triton: tuple[str, int | str, int]
    matrix_instruction: str
    shared_limit: int


MACHINES = {
    "sm_80": Machine(("cuda", 80, 32), "HMMA", 163 * 1024),
    "sm_86": Machine(("cuda", 86, 32), "HMMA", 99 * 1024),
    "sm_89": Machine(("cuda", 89, 32), "HMMA", 99 * 1024),
    "sm_90": Machine(("cuda", 90, 32), "HGMMA", 227 * 1024),
    "sm_100": Machine(("cuda", 100, 32), "UTCHMMA", 227 * 1024),
    "sm_103": Machine(("cuda", 103, 32), "UTCHMMA", 227 * 1024),
    "sm_120": Machine(("cuda", 120, 32), "HMMA", 99 * 1024),
    "gfx942": Machine(("hip", "gfx942", 64), "v_mfma", 64 * 1024),
    "gfx950": Machine(("hip", "gfx950", 64), "v_mfma", 160 * 1024),
}
"""Shared memory: CUDA programming guide, table of compute capabilities; CDNA 3 and 4 ISA."""

SASS_INSTRUCTION = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)", re.M)
MATRIX_INSTRUCTION = re.compile(r"(?:HMMA|IMMA|QMMA|OMMA|\w*GMMA|UTC\w*MMA|v_mfma)")


@dataclass(frozen=True)
class Resources:
    """What one kernel takes of a machine.

    registers: for each thread. spills: bytes (NVIDIA) or vector registers (AMD) kept in memory.
    shared: bytes a block. tensor_memory: columns (sm_100). matrix_instructions: opcode → count.
    """

    registers: int
    spills: int
    shared: int
    tensor_memory: int
    matrix_instructions: dict[str, int]


@dataclass(frozen=True)
class KernelArtifacts(Resources):
    """What one kernel became on one target, as texts. warnings: of the assembler."""

    target: str
    triton: str
    ttir: str
    ttgir: str
    ptx: str | None
    amdgcn: str | None
    sass: str | None
    warnings: list[str]

    @property
    def assembly(self) -> str:
        """The disassembly; AMD: the assembly."""
        return self.sass or self.amdgcn or ""

    @property
    def resources(self) -> Resources:
        """Registers, spills, memory and matrix instructions, without the texts."""
        return Resources(**{field.name: getattr(self, field.name) for field in fields(Resources)})

    @property
    def instructions(self) -> list[str]:
        """Opcodes of the disassembly, in order; AMD: of the assembly."""
        if self.sass is not None:
            return SASS_INSTRUCTION.findall(self.sass)
        return re.findall(r"^\s+([a-z]+_\w+)", self.amdgcn or "", re.M)


def compile_offline(
    kernel: KernelOp | str, target: str, python: str = sys.executable
) -> KernelArtifacts:
    """Compile one kernel, or the source printed from one, for a target of MACHINES.

    `python` may be another environment's, with another Triton. Raises GqcError if it fails.
    """
    return compile_many([(kernel, target)], python)[0]


def compile_many(
    jobs: Sequence[tuple[KernelOp | str, str]], python: str = sys.executable
) -> list[KernelArtifacts]:
    """Compile kernels for targets in one process. Raises GqcError that names every failure."""
    unknown = sorted({target for _, target in jobs} - set(MACHINES))
    if unknown:
        raise GqcError(f"no GPU {', '.join(unknown)}: choose one of {', '.join(MACHINES)}")
    request = [
        {"source": k if isinstance(k, str) else emit(k), "target": MACHINES[target].triton}
        for k, target in jobs
    ]
    results = run_worker(request, python)
    failures = [
        f"{target}: {result['error']}"
        for (_, target), result in zip(jobs, results, strict=True)
        if "error" in result
    ]
    if failures:
        raise GqcError("Triton compiled no kernel for\n" + "\n".join(failures))
    return [artifacts(t, result) for (_, t), result in zip(jobs, results, strict=True)]


def run_worker(request: list[dict], python: str) -> list[dict]:
    """Run worker.py on a list of jobs, with a cache that starts empty: each kernel is compiled."""
    with tempfile.TemporaryDirectory() as folder:
        asked, answered = Path(folder, "request.json"), Path(folder, "response.json")
        asked.write_text(json.dumps(request))
        settings = {
            "TRITON_CACHE_DIR": str(Path(folder, "cache")),
            "TRITON_DUMP_PTXAS_LOG": "1",
            "TRITON_NVDISASM_PATH": disassembler(),
        }
        done = subprocess.run(
            [python, str(WORKER), str(asked), str(answered)],
            env={**os.environ, **settings, "TRITON_INTERPRET": "0"},
            capture_output=True,
            text=True,
        )
        if done.returncode or not answered.exists():
            raise GqcError(f"{python} {WORKER} failed ({done.returncode}):\n{done.stderr[-2000:]}")
        return json.loads(answered.read_text())


def disassembler() -> str:
    """This Python's nvdisasm, for every Triton: that of 3.6 cannot read what it made for sm_103."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise GqcError("kernels for GPUs are compiled by Triton, which this Python does not have")
    return str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm")


def artifacts(target: str, result: dict) -> KernelArtifacts:
    """Registers, spills and instructions, read from the texts of one result of the worker."""
    code = result.get("sass") or result["amdgcn"]
    if "sass" in result:
        registers = number(r"Used (\d+) registers", result["log"])
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", result["log"])))
        opcodes = SASS_INSTRUCTION.findall(code)
    else:
        registers = number(r"\.vgpr_count:\s+(\d+)", code)
        spills = number(r"\.vgpr_spill_count:\s+(\d+)", code)
        opcodes = re.findall(r"^\s+(v_mfma\w*)", code, re.M)
    return KernelArtifacts(
        target=target,
        triton=result["triton"],
        ttir=result["ttir"],
        ttgir=result["ttgir"],
        ptx=result.get("ptx"),
        amdgcn=result.get("amdgcn"),
        sass=result.get("sass"),
        registers=registers,
        spills=spills,
        shared=result["shared"],
        tensor_memory=result["tensor_memory"],
        matrix_instructions=dict(Counter(o for o in opcodes if MATRIX_INSTRUCTION.match(o))),
        warnings=re.findall(r"^.*(?:warning|\bC75\d\d\b).*$", result["log"], re.M),
    )


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise GqcError(f"the compiler's output has no {pattern!r}: {text[-500:]}")
    return int(match[1])


def check(built: KernelArtifacts) -> list[str]:
    """The gates that a compiled kernel misses, each with the numbers; empty for a good one."""
    machine, problems = MACHINES[built.target], []
    if not any(name.startswith(machine.matrix_instruction) for name in built.matrix_instructions):
        found = ", ".join(built.matrix_instructions) or "none"
        problems.append(f"no {machine.matrix_instruction}: found {found}")
    if built.spills:
        problems.append(f"{built.spills} spilled to memory, {built.registers} registers in use")
    if built.shared > machine.shared_limit:
        problems.append(f"{built.shared} bytes of shared memory, of {machine.shared_limit}")
    if built.tensor_memory > TENSOR_MEMORY_COLUMNS:
        problems.append(
            f"{built.tensor_memory} columns of tensor memory, of {TENSOR_MEMORY_COLUMNS}"
        )
    if len(built.instructions) <= STUB:
        problems.append(f"a stub of {len(built.instructions)} instructions")
    problems += [f"the assembler warns: {warning}" for warning in built.warnings]
    return problems
