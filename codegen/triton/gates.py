"""What a compiled kernel must be: one row a gate, each a function that says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gqc.codegen.triton.disassembly import instructions
from gqc.codegen.triton.loads import narrow_loads
from gqc.codegen.triton.machines import (
    BLOCK_SCALED,
    MACHINES,
    NO_MATRIX,
    TENSOR_MEMORY_COLUMNS,
)

if TYPE_CHECKING:
    from gqc.codegen.triton.offline import KernelArtifacts

STUB = 100
"""A disassembly of no more instructions is no kernel: the assembler gave up silently."""

STORES = re.compile(r"(?:STG|UTMASTG|global_store|buffer_store)")
SPILLS = re.compile(r"(?:STL|LDL|scratch_)")
SIGNALS = re.compile(r"ttng\.tc_gen5_mma\w* .*?, (%\w+)\[")


@dataclass(frozen=True)
class Gate:
    """One demand. `fault` gives what is wrong, or None. targets and kinds: () for all.

    A gate that is not required is reported, and does not fail a kernel.
    """

    name: str
    fault: Callable[[KernelArtifacts], str | None]
    targets: tuple[str, ...] = ()
    kinds: tuple[str, ...] = ()
    required: bool = True

    def applies(self, built: KernelArtifacts) -> bool:
        return built.target in (self.targets or MACHINES) and (
            not self.kinds or built.source.matrix in self.kinds
        )


@dataclass(frozen=True)
class Verdict:
    """What one gate says of one kernel; fault is None where it passes."""

    gate: Gate
    fault: str | None

    @property
    def failed(self) -> bool:
        return self.fault is not None and self.gate.required


def beyond(what: str, used: int, limit: int) -> str | None:
    return f"{used} {what}, of {limit}" if used > limit else None


def shared_memory(built: KernelArtifacts) -> str | None:
    return beyond("bytes of shared memory", built.shared, MACHINES[built.target].shared_limit)


def tensor_memory(built: KernelArtifacts) -> str | None:
    return beyond("columns of tensor memory", built.tensor_memory, TENSOR_MEMORY_COLUMNS)


def whole_kernel(built: KernelArtifacts) -> str | None:
    """Of what does not fit, Triton leaves a stub without an error."""
    if len(built.instructions) <= STUB:
        return f"a stub of {len(built.instructions)} instructions"
    return None if any(map(STORES.match, built.instructions)) else "stores nothing"


def matrix_instruction(built: KernelArtifacts) -> str | None:
    """The expected instruction, and no other: a fall-back of Triton's is silent."""
    kind, found = built.source.matrix, list(built.matrix_instructions)
    if kind == NO_MATRIX:
        return f"multiplies matrices: {', '.join(found)}" if found else None
    rate = MACHINES[built.target].matrix.get(kind)
    if rate is None:
        return f"{built.target} has no {kind}: found {', '.join(found) or 'none'}"
    others = [name for name in found if not name.startswith(rate.opcode)]
    if len(others) == len(found):
        return f"no {rate.opcode}: found {', '.join(found) or 'none'}"
    return f"{', '.join(others)} beside {rate.opcode}" if others else None


def spills(built: KernelArtifacts) -> str | None:
    if built.spills:
        return f"{built.spills} spilled to memory, {built.registers} registers in use"
    found = sum(bool(SPILLS.match(name)) for name in built.instructions)
    return f"{found} loads and stores of local memory" if found else None


def warnings(built: KernelArtifacts) -> str | None:
    """Among them C75xx: the assembler made asynchronous matrix instructions wait."""
    return f"the assembler warns: {'; '.join(built.warnings)}" if built.warnings else None


def copied_scales(built: KernelArtifacts) -> str | None:
    """Scales go from shared to tensor memory by tcgen05.cp, past the registers."""
    loop = [i.opcode for i in built.main_loop]
    if any(name.startswith("STTM") for name in loop):
        return "scales reach tensor memory through registers (STTM)"
    return None if any(name.startswith("UTCCP") for name in loop) else "no tcgen05.cp (UTCCP)"


def asynchronous(built: KernelArtifacts) -> str | None:
    """No step of the loop waits for the barrier that its own matrix instruction signals."""
    pending: set[str] = set()
    inside = False
    for line in built.ttgir.splitlines():
        if "scf.for" in line:
            inside, pending = True, set()
        elif "scf.yield" in line:
            inside = False
        elif inside and (signal := SIGNALS.search(line)):
            pending.add(signal[1])
        elif inside and "ttng.wait_barrier" in line:
            barrier = line.split("ttng.wait_barrier ")[1].split(",")[0]
            if barrier in pending:
                return f"each step waits for its own matrix instruction ({barrier})"
    return None


def registers_feed_wgmma(built: KernelArtifacts) -> str | None:
    """Decoded weights go from registers to wgmma: one operand of two comes from shared memory."""
    products = [i for i in instructions(built.assembly, False)[0] if i.opcode.startswith("HGMMA")]
    staged = sum(i.operands.count("gdesc") > 1 for i in products)
    return f"{staged} of {len(products)} HGMMA take both operands from shared" if staged else None


def stored_codes(built: KernelArtifacts) -> str | None:
    count = sum(i.opcode.startswith("STS") for i in built.main_loop)
    return f"{count} stores to shared memory a step (STS)" if count else None


def scale_words(built: KernelArtifacts) -> str | None:
    """A lane reads the scales of four instructions at once."""
    count = sum(i.opcode == "ds_read_u8" for i in built.main_loop)
    return f"{count} scales a step are read one by one (ds_read_u8)" if count else None


def wide_loads(built: KernelArtifacts) -> str | None:
    """A thread reads 16 bytes at once, or as many as its part of the tile has."""
    return "; ".join(narrow_loads(built)) or None


BLACKWELL = ("sm_100", "sm_103")
GATES = (
    Gate("shared memory", shared_memory),
    Gate("tensor memory", tensor_memory, BLACKWELL),
    Gate("whole kernel", whole_kernel),
    Gate("matrix instruction", matrix_instruction),
    Gate("no spills", spills),
    Gate("no warnings", warnings),
    Gate("scales by tcgen05.cp", copied_scales, BLACKWELL, BLOCK_SCALED),
    Gate("scales by words", scale_words, ("gfx950",), BLOCK_SCALED),
    Gate("asynchronous MMA", asynchronous, BLACKWELL, BLOCK_SCALED),
    Gate("wgmma from registers", registers_feed_wgmma, ("sm_90",), ("mma",), required=False),
    Gate("codes stay in registers", stored_codes, ("sm_90",), ("mma",), required=False),
    Gate("128-bit loads", wide_loads),
)


def judge(built: KernelArtifacts) -> list[Verdict]:
    """What each gate that applies to a kernel says of it."""
    return [Verdict(gate, gate.fault(built)) for gate in GATES if gate.applies(built)]


def check(built: KernelArtifacts) -> list[str]:
    """The required gates that a kernel misses, each with the numbers; empty for a good one."""
    return [f"{v.gate.name}: {v.fault}" for v in judge(built) if v.failed]
