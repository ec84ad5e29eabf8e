"""Disassemblies as lists of instructions, and the main loop in one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache

NVIDIA = re.compile(
    r"^(?P<label>\.L\w+):|^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+\s+)?(?P<op>[A-Z][\w.]*)(?P<rest>[^;\n]*)",
    re.M,
)
AMD = re.compile(r"^(?P<label>\.LBB\w+):|^\s+(?P<op>[a-z]+_\w+)(?P<rest>[^\n]*)", re.M)
MATRIX = re.compile(r"(?:HMMA|IMMA|QMMA|OMMA|\w*GMMA|UTC\w*MMA|v_mfma)")
BRANCH = re.compile(r"(?:BRA|s_c?branch)")
LABEL = re.compile(r"\.L\w+")


@dataclass(frozen=True)
class Instruction:
    """An opcode with its modifiers, and the text of its operands."""

    opcode: str
    operands: str

    @property
    def is_matrix(self) -> bool:
        return MATRIX.match(self.opcode) is not None


@lru_cache(maxsize=64)
def instructions(text: str, amd: bool) -> tuple[tuple[Instruction, ...], dict[str, int]]:
    """Instructions in order, and the index at which each label stands."""
    found: list[Instruction] = []
    labels: dict[str, int] = {}
    for match in (AMD if amd else NVIDIA).finditer(text):
        if match["label"]:
            labels[match["label"]] = len(found)
        else:
            found.append(Instruction(match["op"], match["rest"].strip()))
    return tuple(found), labels


def main_loop(text: str, amd: bool, matrix: bool = True) -> tuple[Instruction, ...]:
    """The shortest stretch that a branch goes back over and that multiplies matrices, or ().

    With matrix=False, for kernels that multiply none: the longest stretch. Spinning on a barrier
    and the idle loop behind a kernel's end hold no memory instruction and are none.
    """
    code, labels = instructions(text, amd)
    loops = []
    for i, instruction in enumerate(code):
        target = LABEL.search(instruction.operands)
        if BRANCH.match(instruction.opcode) and target and labels.get(target[0], i + 1) <= i:
            loops.append(code[labels[target[0]] : i + 1])
    if matrix:
        return min((x for x in loops if any(c.is_matrix for c in x)), key=len, default=())
    return max((x for x in loops if any(map(is_load, x))), key=len, default=())


def is_load(instruction: Instruction) -> bool:
    """Whether it reads global memory: LDG, LDGSTS, TMA; global_load, buffer_load."""
    return bool(re.match(r"(?:LDG|UTMALDG|global_load|buffer_load)", instruction.opcode))
