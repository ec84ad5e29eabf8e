"""The table of block-scaled products that matrix units multiply as they are stored.

A row is there if Triton's `tl.dot_scaled` gives the instruction without spills, which was seen in
what Triton makes for the target offline, of each version from `since` on. A pair that has no row
is decoded and multiplied as 16-bit floats. What is missing, and why: NVFP4 on gfx950 does not
compile; sm_120 multiplies FP8 by FP4 in bf16 unless the FP4 codes are first widened to FP8.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gqc.targets import ANY, Tiling

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

E4M3 = "f8E4M3FN"
FP8, FP6, FP4 = (E4M3, "f8E5M2"), ("f6E2M3FN", "f6E3M2FN"), "f4E2M1FN"


@dataclass(frozen=True)
class Native:
    """One row.

    matrix: the kind of instruction, as PTX names it (AMD has one). instruction: how its name begins
    in a disassembly. widen_x, widen_w: the element that codes are widened to in registers, or None.
    layout, lanes: of `#gq.layout` for the weight; x is in `bytes` (`gqc.formats.byte_layouts`).
    scales: of what is in `bytes`. tilings: by rows. copies: how tiles are read and written,
    `pointers` or `tma`. nonkdim: rows and columns of one instruction, where there are several to
    choose from, else 0. since: the first Triton version that is known to do it.
    """

    matrix: str
    instruction: str
    tilings: tuple[Tiling, ...]
    scales: str = "linear"
    layout: str = "bytes"
    lanes: int = 1
    copies: str = "pointers"
    widen_x: str | None = None
    widen_w: str | None = None
    nonkdim: int = 0
    since: str = "3.6"


BLACKWELL_8 = (Tiling(128, 128, 128, 128, 4, 4), Tiling(ANY, 128, 256, 128, 8, 4))
BLACKWELL_4 = (Tiling(128, 128, 128, 256, 4, 4), Tiling(ANY, 128, 256, 256, 8, 4))
GEFORCE_8 = (
    Tiling(16, 16, 64, 128, 4, 3),
    Tiling(64, 64, 128, 128, 4, 2),
    Tiling(ANY, 128, 128, 128, 8, 2),
)
GEFORCE_4 = (
    Tiling(16, 16, 64, 256, 4, 3),
    Tiling(64, 64, 128, 256, 4, 2),
    Tiling(ANY, 128, 128, 256, 8, 2),
)
CDNA4 = (
    Tiling(32, 32, 64, 256, 4, 2),
    Tiling(64, 64, 64, 256, 4, 2),
    Tiling(ANY, 128, 128, 256, 8, 2),
)


def blackwell(matrix: str, instruction: str, tilings: tuple[Tiling, ...]) -> Native:
    return Native(matrix, instruction, tilings, "swizzle_32_4_4", copies="tma")


def cdna4() -> Native:
    return Native("mxf8f6f4", "v_mfma_scale", CDNA4, "shuffle_32_8", nonkdim=16)


Key = tuple[str, str, str, str]
"""Target, element of x, element of w, format of the scales of both."""


def native_table() -> dict[Key, Native]:
    table: dict[Key, Native] = {}

    def add(target: str, x: str, w: str, row: Native, scale: str = "f8E8M0FNU") -> None:
        table[target, x, w, scale] = row

    bytes_ = (*FP8, *FP6)
    for target, block16 in (("sm_100", "UTCOMMA.4X"), ("sm_103", "UTCOMMA.BLOCK16")):
        wide = blackwell("mxf8f6f4", "UTCQMMA", BLACKWELL_8)
        for x in bytes_:
            for w in (*bytes_, FP4):
                add(target, x, w, wide)
        add(target, FP4, FP4, blackwell("mxf4", "UTCOMMA", BLACKWELL_4))
        add(target, FP4, FP4, blackwell("mxf4nvf4", block16, BLACKWELL_4), E4M3)
    for x in bytes_:
        for w in bytes_:
            add("sm_120", x, w, Native("mxf8f6f4", "QMMA.SF", GEFORCE_8))
            add("gfx950", x, w, cdna4())
        add("sm_120", x, FP4, Native("mxf8f6f4", "QMMA.SF", GEFORCE_8, widen_w=E4M3))
        add("gfx950", x, FP4, cdna4())
    add("sm_120", FP4, FP4, Native("mxf4nvf4", "OMMA.SF", GEFORCE_4))
    add("sm_120", FP4, FP4, Native("mxf4nvf4", "OMMA.SF", GEFORCE_4), E4M3)
    add("gfx950", FP4, FP4, cdna4())
    return table


NATIVE: Mapping[Key, Native] = native_table()
"""Every pair that a target multiplies natively."""


def native(target: str, x: BlockScaledType, weight: BlockScaledType) -> Native | None:
    """The row of the product of two types on a target, by name; None if there is none."""
    return NATIVE.get((target, str(x.element), str(weight.element), str(weight.scale)))
