"""Vector registers that compiled CPU code keeps on the stack, as LLVM notes it in assembly."""

from __future__ import annotations

import re

from gqc.codegen.cpu import jit
from gqc.codegen.cpu.isa import ISAS
from gqc.dialects.tile import KernelOp

BLOCK = re.compile(r"^(\.LBB\w+|[\w.]+):|^(#|//) %bb\.")
HEADER = re.compile(r"(Inner )?Loop Header: Depth=")
MEMBER = re.compile(r"in Loop: Header=(BB\w+)")
SPILL = re.compile(r"(\d+)-byte (Folded )?(Spill|Reload)")
VECTOR_BYTES = 16


def annotated(kernel: KernelOp, isa: str) -> str:
    """Assembly of a kernel for a tier, with LLVM's comments: loops, spills."""
    row = ISAS[isa]
    machine = jit.target_machine(row, jit.foreign(row))
    machine.set_asm_verbosity(True)
    try:
        return machine.emit_assembly(jit.optimized(jit.llvm_text(kernel, row), machine))
    finally:
        machine.set_asm_verbosity(False)


def loops_of(text: str) -> dict[str, list[str]]:
    """Lines of each loop by the label of its header, without those of the loops in it.

    Of innermost loops the label ends in `*`.
    """
    loops: dict[str, list[str]] = {}
    for block in blocks_of(text):
        head = "\n".join(line for line in block if re.match(r"\S+:|\s+(#|//) ", line))
        if header := HEADER.search(head):
            label = block[0].split(":")[0].removeprefix(".L")
            loops[label + ("*" if header[1] else "")] = list(block)
        elif member := MEMBER.search(head):
            loop = member[1] + "*" if member[1] + "*" in loops else member[1]
            loops.setdefault(loop, []).extend(block)
    return loops


def blocks_of(text: str) -> list[list[str]]:
    blocks: list[list[str]] = [[]]
    for line in text.splitlines():
        if BLOCK.match(line):
            blocks.append([])
        blocks[-1].append(line)
    return blocks


def vector_spills(lines: list[str]) -> int:
    """Vectors that these lines write to the stack or read from it."""
    found = [SPILL.search(line) for line in lines]
    return sum(int(spill[1]) >= VECTOR_BYTES for spill in found if spill)


def spills_in_loops(kernel: KernelOp, isa: str) -> tuple[int, int]:
    """Of innermost loops, and of those around them."""
    loops = loops_of(annotated(kernel, isa))
    inner = sum(vector_spills(lines) for label, lines in loops.items() if label.endswith("*"))
    return inner, sum(map(vector_spills, loops.values())) - inner
