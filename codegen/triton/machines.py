"""The GPUs that kernels are compiled for: what they are to Triton, what they hold, how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

TENSOR_MEMORY_COLUMNS = 512

NO_MATRIX = "none"
"""The `matrix` attribute of kernels that multiply no matrices."""


@dataclass(frozen=True)
class Rate:
    """A matrix instruction: how its opcodes begin, and the dense rate in TFLOP/s."""

    opcode: str
    tflops: float


@dataclass(frozen=True)
class Machine:
    """One GPU. Rates are a vendor's dense peaks of `model`.

    triton: backend, architecture, threads of a warp. shared_limit: bytes a block. units: SMs or
    CUs. clock: GHz, boost. bandwidth: TB/s. issue: instructions a clock a unit. matrix: by kind.
    """

    triton: tuple[str, int | str, int]
    model: str
    shared_limit: int
    units: int
    clock: float
    bandwidth: float
    issue: int
    matrix: Mapping[str, Rate]

    @property
    def is_amd(self) -> bool:
        return self.triton[0] == "hip"


KB = 1024


def nvidia(
    arch: int, model: str, shared: int, units: int, clock: float, bandwidth: float, **matrix: Rate
) -> Machine:
    """Four schedulers an SM, each issuing one instruction of a warp a clock."""
    return Machine(
        ("cuda", arch, 32), model, shared * KB, units, clock, bandwidth, issue=4, matrix=matrix
    )


def amd(
    arch: str, model: str, shared: int, units: int, clock: float, bandwidth: float, **matrix: Rate
) -> Machine:
    """A CU issues one vector instruction of 64 lanes a clock; scalar ones go beside it."""
    return Machine(
        ("hip", arch, 64), model, shared * KB, units, clock, bandwidth, issue=1, matrix=matrix
    )


BLOCK_SCALED = ("mxf8f6f4", "mxf4", "mxf4nvf4")


def scaled(*rates: tuple[str, float]) -> dict[str, Rate]:
    """Rates of the kinds of BLOCK_SCALED, in order."""
    return {kind: Rate(*rate) for kind, rate in zip(BLOCK_SCALED, rates, strict=False)}


MACHINES: dict[str, Machine] = {
    # NVIDIA A100 80GB SXM data sheet.
    "sm_80": nvidia(80, "A100 SXM", 163, 108, 1.41, 2.039, mma=Rate("HMMA", 312)),
    # NVIDIA A10 data sheet.
    "sm_86": nvidia(86, "A10", 99, 72, 1.695, 0.6, mma=Rate("HMMA", 125)),
    # NVIDIA L40S data sheet.
    "sm_89": nvidia(89, "L40S", 99, 142, 2.52, 0.864, mma=Rate("HMMA", 362)),
    # NVIDIA H100 SXM data sheet; an H200 is the same with 4.8 TB/s.
    "sm_90": nvidia(90, "H100 SXM", 227, 132, 1.83, 3.35, mma=Rate("HGMMA", 989)),
    # NVIDIA HGX B200 data sheet, an eighth of it. The clock is the one its rates imply.
    "sm_100": nvidia(
        *(100, "B200", 227, 148, 1.85, 8.0),
        mma=Rate("UTCHMMA", 2250),
        **scaled(("UTCQMMA", 4500), ("UTCOMMA", 9000), ("UTCOMMA", 9000)),
    ),
    # NVIDIA HGX B300 data sheet, an eighth of it: 4-bit formats gain half as much again.
    "sm_103": nvidia(
        *(103, "B300", 227, 148, 1.85, 8.0),
        mma=Rate("UTCHMMA", 2250),
        **scaled(("UTCQMMA", 4500), ("UTCOMMA", 13500), ("UTCOMMA", 13500)),
    ),
    # NVIDIA RTX Blackwell architecture white paper, RTX 5090, sums in FP32.
    "sm_120": nvidia(
        *(120, "RTX 5090", 99, 170, 2.407, 1.792),
        mma=Rate("HMMA", 209.5),
        **scaled(("QMMA.SF", 419), ("OMMA.SF", 1676), ("OMMA.SF", 1676)),
    ),
    # AMD Instinct MI300X data sheet; CDNA 3 ISA.
    "gfx942": amd("gfx942", "MI300X", 64, 304, 2.1, 5.3, mma=Rate("v_mfma_f32", 1307)),
    # AMD Instinct MI355X data sheet; CDNA 4 ISA.
    "gfx950": amd(
        *("gfx950", "MI355X", 160, 256, 2.4, 8.0),
        mma=Rate("v_mfma_f32", 2517),
        **scaled(("v_mfma_scale", 5033), ("v_mfma_scale", 10066)),
    ),
}
"""Shared memory: CUDA programming guide, table of compute capabilities; CDNA 3 and 4 ISA."""
