"""How long a compiled kernel must take, from its disassembly and the machine's data sheet.

One step of the main loop, on a unit (SM or CU) that runs one program after another:

    t = max( bytes · min(P, units) / bandwidth,        memory, all programs at work sharing it
             2 · BM · BN · BK / (matrix rate / units),  the matrix instruction
             instructions · warps / (issue · clock) )   issue slots
    predicted = t · steps · waves

P is the number of programs, waves = ⌈P / units⌉, and `bytes` a program's share of one step when
every array crosses the memory bus once. The roofline is max(bytes / bandwidth, operations / matrix
rate) of the whole layer, at the rate of the kernel's own instruction.

Left out: latency and what hides it (stages, blocks a unit), the loop's prologue and the epilogue,
launch, shared memory's and L2's bandwidth, memory that few programs cannot saturate, clocks under
load. A prediction is a lower bound by which kernels are compared, not a measurement.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from gqc.codegen.triton.disassembly import Instruction
from gqc.codegen.triton.machines import MACHINES, NO_MATRIX
from gqc.codegen.triton.offline import KernelArtifacts
from gqc.codegen.triton.source import Source

SHAPES = (
    # Opcode, warps that issue it together, its M, N and K (digits as the opcode has them).
    (re.compile(r"[HQO]MMA\.(?:SF\.)?(16)(8)(\d\d)\."), 1),
    (re.compile(r"HGMMA\.(64)x(\d+)x(\d+)"), 4),
    (re.compile(r"v_mfma_(?:scale_)?f32_(\d+)x(\d+)x(\d+)"), 1),
)


@dataclass(frozen=True)
class Estimate:
    """Microseconds for a number of rows, and what bounds a step: memory, matrix or issue.

    share: of the roofline, from 0 to 1. instructions_per_weight: threads' instructions of the main
    loop for each weight element it decodes (for kernels that multiply nothing, each element of
    the output).
    """

    rows: int
    instructions_per_weight: float
    microseconds: float
    share: float
    bound: str


def estimate(built: KernelArtifacts, rows: int) -> Estimate:
    """Predict the time of one launch on `rows` rows, by the formula above."""
    machine, source = MACHINES[built.target], built.source
    bm, bn = source.tile
    programs = -(-rows // bm) * -(-source.columns // bn)
    waves = -(-programs // machine.units)
    total = sum(array.bytes(rows) for array in source.arrays.values())
    issued = issue_slots(built) * source.warps
    rate = machine.matrix.get(source.matrix)
    per_second = rate.tflops * 1e12 if rate else math.inf
    step = {
        "memory": total
        / (programs * source.steps)
        * min(programs, machine.units)
        / (machine.bandwidth * 1e12),
        "matrix": 2 * bm * bn * source.step / (per_second / machine.units),
        "issue": issued / (machine.issue * machine.clock * 1e9),
    }
    seconds = max(step.values()) * source.steps * waves
    operations = 2 * rows * source.columns * source.depth
    ideal = max(total / (machine.bandwidth * 1e12), operations / per_second)
    elements = bn * (bm if source.matrix == NO_MATRIX else source.step)
    return Estimate(
        rows=rows,
        instructions_per_weight=issued * machine.triton[2] / elements,
        microseconds=seconds * 1e6,
        share=ideal / seconds,
        bound=max(step, key=step.__getitem__),
    )


def issue_slots(built: KernelArtifacts) -> float:
    """Instructions that one warp issues for one step of the loop over K.

    On AMD those of the vector unit: scalar, memory and matrix ones issue beside them. Without a
    loop in the disassembly, all of it is the source's steps.
    """
    source, amd = built.source, MACHINES[built.target].is_amd
    loop = built.main_loop
    stretch, steps = (loop, unrolled(loop, source)) if loop else (built.code, source.steps)
    counted = [i for i in stretch if not amd or (i.opcode.startswith("v_") and not i.is_matrix)]
    return len(counted) / steps


def unrolled(loop: Sequence[Instruction], source: Source) -> int:
    """Steps of K in one pass of the loop, by its matrix instructions; 1 where shapes are hidden.

    tcgen05.mma keeps its shape in a descriptor; Triton does not unroll, the assembler rarely.
    """
    work = 0.0
    for instruction in loop:
        for pattern, warps in SHAPES:
            if match := pattern.match(instruction.opcode):
                work += math.prod(map(int, match.groups())) / warps
    bm, bn = source.tile
    return max(1, round(work * source.warps / (bm * bn * source.step)))
