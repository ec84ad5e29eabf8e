"""The table of dots of bytes: CPU instructions that multiply 8-bit activations by integer codes.

Activations are `si8` under one f32 scale a group, weights are integers of any width, in groups of
the same size, with any zero point. Products and their sums over a group are exact in i32; then the
two scales of the group are applied in f32.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from gqc.formats.packing import whole_words
from gqc.native import Native
from gqc.targets import ANY, Tiling, in_turns

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

ACTIVATION = ("si8", "f32")
"""Element and scale of activations."""


def dot(instruction: str, *tilings: Tiling) -> Native:
    return Native(instruction, instruction, tilings, "summed", "lane_quads", LANES)


LANES = 32
"""A tile's columns: narrow panels, so that what a tile reads lies side by side."""

# Sums in i32 and in f32 for each row and vector of a tile stay in registers: 32 of them, or 16.
TWO, FOUR = Tiling(2, 2, LANES, 0), Tiling(ANY, 4, LANES, 0)
FEW = (Tiling(1, 1, LANES, 0), TWO)
WIDE = (*FEW, FOUR)
# Of twice as many some are spilled at the ends of blocks, but weights are decoded half as often.
EIGHT = (*FEW, *in_turns(FOUR, Tiling(8, 8, LANES, 0)), FOUR)
NARROW = (*FEW, Tiling(4, 4, 16, 0), replace(TWO, rows=6), Tiling(ANY, 4, 16, 0))
QUARTER = (Tiling(1, 1, LANES, 0), Tiling(ANY, 4, 8, 0))

TILES = (*FEW, Tiling(16, 4, LANES, 0), Tiling(ANY, 32, LANES, 0, panel=256))

AMX = dot("vpdpbusd or tdpbsud", *TILES)
VNNI, VNNI_256, NEON = dot("vpdpbusd", *EIGHT), dot("vpdpbusd", *NARROW), dot("sdot", *QUARTER)

INTEGER_DOTS: Mapping[str, tuple[Native, Native]] = {
    "cpu_amx": (AMX, AMX),
    "cpu_avx512bf16": (VNNI, VNNI),
    "cpu_cooperlake": (VNNI, VNNI),
    "cpu_avx512vnni": (VNNI, VNNI),
    # vpmaddubsw saturates sums of two products beyond i16: codes of 8 bits are widened first.
    "cpu_avx512": (dot("vpmaddubsw", *WIDE), dot("vpmaddwd", *EIGHT)),
    "cpu_avxvnni": (VNNI_256, VNNI_256),
    "cpu_avx2": (dot("vpmaddubsw", *NARROW), dot("vpmaddwd", *NARROW)),
    "cpu_neon": (NEON, NEON),
}
"""By target, for codes of fewer than 8 bits and for those of 8. A target without is no worse off
with floats."""


def integer_dot(target: str, x: BlockScaledType, weight: BlockScaledType) -> Native | None:
    """The row by which a target multiplies two types as integers; None if there is none."""
    if target not in INTEGER_DOTS or (str(x.element), str(x.scale)) != ACTIVATION:
        return None
    if not weight.format.is_integer or weight.has_tensor_scale or x.block.data[-1].data < 0:
        return None
    group = x.block.data[-1].data
    if [block.data for block in weight.block] != [1, group]:
        return None
    if group % whole_words(weight.format.bits):
        return None
    return INTEGER_DOTS[target][weight.format.bits == 8]
