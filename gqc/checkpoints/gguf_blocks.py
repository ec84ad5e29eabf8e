"""GGUF's block types: how a block of ggml becomes codes, scales and zero points.

Blocks are those of ggml's `ggml-common.h`, arithmetic is that of its `dequantize_row_*`. The K
types have scales of two levels, `d · sc`, whose products are exact in f32.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from gqc.checkpoints.bits import unpack

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes [..., block], scales [..., block / group], and zero points like these or None."""


def f16(raw: torch.Tensor, start: int) -> torch.Tensor:
    """The f16 at a byte of each block, [..., 1]."""
    return raw[..., start : start + 2].contiguous().view(torch.float16)


def nibbles(raw: torch.Tensor, start: int, run: int) -> torch.Tensor:
    """Codes of 4 bits to the end: of each `run` bytes all low halves, then all high halves."""
    packed = raw[..., start:].unflatten(-1, (-1, run))
    return torch.cat([packed & 15, packed >> 4], -1).flatten(-2)


def planes(raw: torch.Tensor, bits: int, count: int, run: int = 32) -> torch.Tensor:
    """Codes of 1 or 2 bits: of each `run` bytes the lowest bits, then the next, `count` times."""
    shifts = torch.arange(0, bits * count, bits, dtype=torch.uint8).unsqueeze(-1)
    packed = raw.unflatten(-1, (-1, 1, run)) >> shifts
    return (packed & (1 << bits) - 1).flatten(-3)


def fifth_bit(raw: torch.Tensor, start: int) -> torch.Tensor:
    """Bit 4 of 32 codes, from 4 bytes."""
    return unpack(raw[..., start : start + 4], 1, 32) << 4


def q4_0(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 2, 16).view(torch.int8) - 8, f16(raw, 0), None


def q4_1(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 4, 16), f16(raw, 0), f16(raw, 2)


def q5_0(raw: torch.Tensor) -> Parts:
    return (nibbles(raw, 6, 16) | fifth_bit(raw, 2)).view(torch.int8) - 16, f16(raw, 0), None


def q5_1(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 8, 16) | fifth_bit(raw, 4), f16(raw, 0), f16(raw, 2)


def q8_0(raw: torch.Tensor) -> Parts:
    return raw[..., 2:].view(torch.int8), f16(raw, 0), None


def q2_k(raw: torch.Tensor) -> Parts:
    """16 bytes of a scale and a minimum, 4 bits each; 64 bytes of codes; d and dmin."""
    scale = f16(raw, 80).float() * (raw[..., :16] & 15)
    return planes(raw[..., 16:80], 2, 4), scale, -(f16(raw, 82).float() * (raw[..., :16] >> 4))


def q3_k(raw: torch.Tensor) -> Parts:
    """32 bytes of high bits, 64 of low ones, 12 of scales of 6 bits, d.

    A code is negative where its high bit is not set. The scales' low halves are the nibbles of 8
    bytes, their high bits the pairs of the other 4.
    """
    codes = planes(raw[..., 32:96], 2, 4) | planes(raw[..., :32], 1, 8) << 2
    scales = nibbles(raw[..., 96:104], 0, 8) | planes(raw[..., 104:108], 2, 4, 4) << 4
    scale = f16(raw, 108).float() * (scales.view(torch.int8) - 32)
    return codes.view(torch.int8) - 4, scale, None


def six_bits(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minima of 6 bits, from the 12 bytes that Q4_K and Q5_K have at byte 4.

    Bytes 0–3 and 4–7 hold the first four of each, and above them the high two bits of the others,
    whose low halves share bytes 8–11.
    """
    first, second, rest = raw[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    scale = torch.cat([first & 63, (rest & 15) | (first >> 6) << 4], -1)
    least = torch.cat([second & 63, rest >> 4 | (second >> 6) << 4], -1)
    return f16(raw, 0).float() * scale, -(f16(raw, 2).float() * least)


def q4_k(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 16, 32), *six_bits(raw)


def q5_k(raw: torch.Tensor) -> Parts:
    """Bit 4 of sub-block i is bit i of 32 bytes."""
    return nibbles(raw, 48, 32) | planes(raw[..., 16:48], 1, 8) << 4, *six_bits(raw)


def q6_k(raw: torch.Tensor) -> Parts:
    """Of each half, 64 bytes of low halves and 32 of four pairs of high bits; 16 scales; d."""
    codes = nibbles(raw[..., :128], 0, 64) | planes(raw[..., 128:192], 2, 4) << 4
    scale = f16(raw, 208).float() * raw[..., 192:208].view(torch.int8)
    return codes.view(torch.int8) - 32, scale, None


def iq4_nl(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 2, 16), f16(raw, 0), None


def iq4_xs(raw: torch.Tensor) -> Parts:
    """d, 2 bytes of eight scales' high bits, 4 of their low halves, 128 of codes."""
    low = unpack(raw[..., 4:8], 4, 8)
    scales = (low | unpack(raw[..., 2:4], 2, 8) << 4).view(torch.int8) - 32
    return nibbles(raw, 8, 16), f16(raw, 0).float() * scales, None


def tq2_0(raw: torch.Tensor) -> Parts:
    """Values of −1, 0 and 1; a code may be 3."""
    return planes(raw[..., :64], 2, 4), f16(raw, 64), -f16(raw, 64)


def mxfp4(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 1, 16), raw[..., :1].view(torch.float8_e8m0fnu), None


def nvfp4(raw: torch.Tensor) -> Parts:
    """Four scales in E4M3 without a sign, where 0x7F is zero; of each group low halves first."""
    scale = torch.where(raw[..., :4] == 0x7F, 0, raw[..., :4]) & 0x7F
    return nibbles(raw, 4, 8), scale.view(torch.float8_e4m3fn), None


@dataclass(frozen=True)
class BlockType:
    """One row: elements and bytes of a block, elements of a group, and what takes it apart.

    halves: where a block has numbers of 16 bits, whose bytes big-endian files have the other way
    round; None where such files are not known.
    """

    name: str
    elements: int
    bytes: int
    element: str
    group: int
    parts: Callable[[torch.Tensor], Parts]
    halves: tuple[int, ...] | None = None


BLOCK_TYPES: dict[int, BlockType] = {
    2: BlockType("Q4_0", 32, 18, "si4", 32, q4_0, (0,)),
    3: BlockType("Q4_1", 32, 20, "ui4", 32, q4_1),
    6: BlockType("Q5_0", 32, 22, "si5", 32, q5_0),
    7: BlockType("Q5_1", 32, 24, "ui5", 32, q5_1),
    8: BlockType("Q8_0", 32, 34, "si8", 32, q8_0, (0,)),
    10: BlockType("Q2_K", 256, 84, "ui2", 16, q2_k),
    11: BlockType("Q3_K", 256, 110, "si3", 16, q3_k),
    12: BlockType("Q4_K", 256, 144, "ui4", 32, q4_k, (0, 2)),
    13: BlockType("Q5_K", 256, 176, "ui5", 32, q5_k),
    14: BlockType("Q6_K", 256, 210, "si6", 16, q6_k, (208,)),
    20: BlockType("IQ4_NL", 32, 18, "iq4_nl", 32, iq4_nl),
    23: BlockType("IQ4_XS", 256, 136, "iq4_nl", 32, iq4_xs),
    35: BlockType("TQ2_0", 256, 66, "ui2", 256, tq2_0),
    39: BlockType("MXFP4", 32, 17, "f4E2M1FN", 32, mxfp4, ()),
    40: BlockType("NVFP4", 64, 36, "f4E2M1FN", 16, nvfp4, ()),
}
"""Types that are read as they are stored, by their numbers in ggml."""

DENSE: dict[int, torch.dtype] = {
    0: torch.float32,
    1: torch.float16,
    28: torch.float64,
    30: torch.bfloat16,
}
"""Types that are not quantized."""
