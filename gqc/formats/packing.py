"""Packing: codes of any width into 32-bit words.

A width is split into binary planes (3 = 2 + 1, 6 = 4 + 2), low bits of the code in the first plane,
so every word holds a power of two of codes. Within a word, codes lie in one of two orders:

- `pairs`: even codes in the low half and odd ones in the high half. `(word >> b·i) &
  mask·0x00010001` is the pair of codes (2i, 2i + 1), ready for 16-bit arithmetic on pairs, on GPUs
  and CPUs alike.
- `quads`: `(word >> b·i) & mask·0x01010101` is the four codes from 4i on, a byte each, ready for
  dots of bytes on CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD = 32
SLICE = 1 << 18
"""Elements to work on at once: temporaries are wider than codes, and weights are large. Those of
more than some MB leave the caches, and are given back to the system and asked of it anew each time.
"""


def slices(matrix: torch.Tensor, rows: int = 1) -> Sequence[torch.Tensor]:
    """Views of a matrix [N, K], of about `SLICE` elements, each of a multiple of `rows` rows."""
    return matrix.split(rows * max(1, SLICE // (rows * matrix.shape[1])))


def planes_of(bits: int) -> tuple[int, ...]:
    """Widths of the planes of a code, low bits first: the powers of two in `bits`, descending."""
    return tuple(1 << i for i in reversed(range(bits.bit_length())) if bits >> i & 1)


def words_of(codes: int, width: int) -> int:
    """Number of words that hold `codes` codes of one plane."""
    return -(-codes * width // WORD)


ORDERS = {"pairs": 2, "quads": 4}
"""Orders of codes in a word, by how many codes one shift and one mask give."""


@cache
def shifts_of(width: int, order: str = "pairs") -> tuple[int, ...]:
    """Bit position of each code in a word, for a plane of `width` bits."""
    together = ORDERS[order]
    return tuple(
        j % together * (WORD // together) + j // together * width for j in range(WORD // width)
    )


def pack(codes: torch.Tensor, bits: int, order: str = "pairs") -> list[torch.Tensor]:
    """Pack integer codes [..., K] into planes, each int32 [..., ceil(K·width/32)].

    Codes are taken modulo 2**bits, so signed codes are stored in two's complement. The last word is
    filled up with zero codes.
    """
    import torch

    planes, low = [], 0
    for width in planes_of(bits):
        plane = codes.to(torch.int32) >> low & (1 << width) - 1
        per_word = WORD // width
        plane = torch.nn.functional.pad(plane, (0, -plane.shape[-1] % per_word))
        lanes = plane.unflatten(-1, (-1, per_word)).unbind(-1)
        words = torch.zeros_like(lanes[0])
        for lane, shift in zip(lanes, shifts_of(width, order), strict=True):
            words |= lane << shift
        planes.append(words)
        low += width
    return planes


def unpack(
    planes: list[torch.Tensor], bits: int, signed: bool, order: str = "pairs"
) -> torch.Tensor:
    """Codes of planes [..., words]: int8 if signed, else uint8, [..., words·32/width].

    Planes of one tensor may differ in what they hold beyond the last code; the shortest counts.
    """
    import torch

    codes, low = [], 0
    for width, words in zip(planes_of(bits), planes, strict=True):
        shifts = torch.tensor(shifts_of(width, order), device=words.device, dtype=torch.int32)
        plane = words.unsqueeze(-1) >> shifts & (1 << width) - 1
        codes.append(plane.flatten(-2) << low)
        low += width
    length = min(c.shape[-1] for c in codes)
    total = torch.stack([c[..., :length] for c in codes]).sum(0)
    if signed:
        return (total - (total >> bits - 1 << bits)).to(torch.int8)
    return total.to(torch.uint8)
