"""Compile printed kernels for any GPU on a machine without one.

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

from gqc.codegen.triton.disassembly import Instruction, instructions, main_loop
from gqc.codegen.triton.emitter import emit
from gqc.codegen.triton.machines import MACHINES, NO_MATRIX
from gqc.codegen.triton.source import Source, read_source
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError

WORKER = Path(__file__).with_name("worker.py")


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

    source: Source
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
    def code(self) -> tuple[Instruction, ...]:
        """The disassembly's instructions, in order."""
        return instructions(self.assembly, self.sass is None)[0]

    @property
    def main_loop(self) -> tuple[Instruction, ...]:
        """The loop that multiplies, or of a kernel that does not, its longest; () without one."""
        return main_loop(self.assembly, self.sass is None, self.source.matrix != NO_MATRIX)

    @property
    def instructions(self) -> list[str]:
        """Opcodes of the disassembly, in order."""
        return [instruction.opcode for instruction in self.code]


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
    sources = [k if isinstance(k, str) else emit(k) for k, _ in jobs]
    request = [
        {"source": source, "target": MACHINES[target].triton}
        for source, (_, target) in zip(sources, jobs, strict=True)
    ]
    results = run_worker(request, python)
    failures = [
        f"{target}: {result['error']}"
        for (_, target), result in zip(jobs, results, strict=True)
        if "error" in result
    ]
    if failures:
        raise GqcError("Triton compiled no kernel for\n" + "\n".join(failures))
    return [
        artifacts(read_source(source), target, result)
        for source, (_, target), result in zip(sources, jobs, results, strict=True)
    ]


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
        command = [python, str(WORKER), str(asked), str(answered)]
        environment = {**os.environ, **settings, "TRITON_INTERPRET": "0"}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
        except OSError as error:
            raise GqcError(f"{python} does not run: {error}") from error
        if done.returncode or not answered.exists():
            raise GqcError(f"{python} {WORKER} failed ({done.returncode}):\n{done.stderr[-2000:]}")
        return json.loads(answered.read_text())


def disassembler() -> str:
    """This Python's nvdisasm, for every Triton: that of 3.6 cannot read what it made for sm_103."""
    spec = find_spec("triton")
    if spec is None or spec.origin is None:
        raise GqcError("kernels for GPUs are compiled by Triton, which this Python does not have")
    return str(Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm")


def artifacts(source: Source, target: str, result: dict) -> KernelArtifacts:
    """Registers, spills and instructions, read from the texts of one result of the worker."""
    if "sass" in result:
        code = instructions(result["sass"], False)[0]
        registers = number(r"Used (\d+) registers", result["log"])
        spills = sum(map(int, re.findall(r"(\d+) bytes spill", result["log"])))
    else:
        code = instructions(result["amdgcn"], True)[0]
        registers = number(r"\.vgpr_count:\s+(\d+)", result["amdgcn"])
        spills = number(r"\.vgpr_spill_count:\s+(\d+)", result["amdgcn"])
    return KernelArtifacts(
        source=source,
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
        matrix_instructions=dict(Counter(i.opcode for i in code if i.is_matrix)),
        warnings=re.findall(r"^.*(?:warning|\bC75\d\d\b).*$", result["log"], re.M),
    )


def number(pattern: str, text: str) -> int:
    match = re.search(pattern, text)
    if match is None:
        raise GqcError(f"the compiler's output has no {pattern!r}: {text[-500:]}")
    return int(match[1])
