"""Packing: codes of any width into 32-bit words.

Codes lie in words in one of the orders of `ORDERS`:

- `pairs`: even codes in the low half of a word and odd ones in the high half. `(word >> b·i) &
  mask·0x00010001` is the pair of codes (2i, 2i + 1), ready for 16-bit arithmetic on pairs. A width
  is split into binary planes (3 = 2 + 1, 6 = 4 + 2), low bits of the code in the first plane, so
  every word holds a power of two of codes.
- `quads`: such planes too, but `(word >> b·i) & mask·0x01010101` is the four codes from 4i on, a
  byte each, ready for dots of bytes on CPUs.
- `halves`: pairs again, but of whole codes, as many as fit the half of a word: five of 3 bits. What
  is left over of the halves of several words holds more codes: the bits left of three words are one
  more pair of 3 bits. One shift gives most pairs of any width, and none is taken from two arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial, reduce
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

WORD = 32
HALF = WORD // 2
SLICE = 1 << 18
"""Elements to work on at once: temporaries are wider than codes, and weights are large. Those of
more than some MB leave the caches, and are given back to the system and asked of it anew each time.
"""


def slices(matrix: torch.Tensor, rows: int = 1) -> Sequence[torch.Tensor]:
    """Views of a matrix [N, K], of about `SLICE` elements, each of a multiple of `rows` rows."""
    return matrix.split(rows * max(1, SLICE // (rows * matrix.shape[1])))


@dataclass(frozen=True)
class Piece:
    """`width` bits of a code, from its bit `low` on: where they lie in the words of a group."""

    word: int
    shift: int
    low: int
    width: int


@dataclass(frozen=True)
class Plane:
    """An array of words with `width` bits of each code, in groups of `words` words.

    codes: the pieces of each code of a group, low bits first.
    """

    width: int
    words: int
    codes: tuple[tuple[Piece, ...], ...]

    def words_of(self, codes: int) -> int:
        """Number of words that hold so many codes, in whole groups."""
        return -(-codes // len(self.codes)) * self.words


def binary_planes(bits: int, lanes: int) -> list[Plane]:
    """A plane for each power of two in `bits`, descending; each word deals codes to lanes."""
    planes, low = [], 0
    for width in (1 << i for i in reversed(range(bits.bit_length())) if bits >> i & 1):
        shifts = [j % lanes * (WORD // lanes) + j // lanes * width for j in range(WORD // width)]
        planes.append(Plane(width, 1, tuple((Piece(0, shift, low, width),) for shift in shifts)))
        low += width
    return planes


def whole_codes(bits: int) -> list[Plane]:
    """One plane, in whose halves of words lie whole codes, and then codes in what bits are left."""
    words, fit = bits // math.gcd(bits, HALF), HALF // bits
    places = [[Piece(word, n * bits, 0, bits)] for word in range(words) for n in range(fit)]
    left = [(word, bit) for word in range(words) for bit in range(fit * bits, HALF)]
    places += [runs(left[first : first + bits]) for first in range(0, len(left), bits)]
    halves = [
        [replace(p, shift=p.shift + high) for p in pieces]
        for pieces in places
        for high in (0, HALF)
    ]
    return [Plane(bits, words, tuple(map(tuple, halves)))]


def runs(places: Sequence[tuple[int, int]]) -> list[Piece]:
    """Pieces of a code whose bits lie at places (word, bit): neighbours of a word are one piece."""
    pieces: list[Piece] = []
    for low, (word, bit) in enumerate(places):
        if pieces and pieces[-1].word == word:
            pieces[-1] = replace(pieces[-1], width=pieces[-1].width + 1)
        else:
            pieces.append(Piece(word, bit, low, 1))
    return pieces


ORDERS: dict[str, Callable[[int], list[Plane]]] = {
    "pairs": partial(binary_planes, lanes=2),
    "quads": partial(binary_planes, lanes=4),
    "halves": whole_codes,
}
"""Orders of codes in words: the planes of a width."""


@cache
def planes_of(bits: int, order: str = "pairs") -> tuple[Plane, ...]:
    """The planes of codes of a width in an order."""
    return tuple(ORDERS[order](bits))


def whole_words(bits: int) -> int:
    """Codes that fill words of every plane, in every order."""
    return WORD // math.gcd(WORD, bits)


def pack(codes: torch.Tensor, bits: int, order: str = "pairs") -> list[torch.Tensor]:
    """Pack integer codes [..., K] into planes, each int32 [..., plane.words_of(K)].

    Codes are taken modulo 2**bits, so signed codes are stored in two's complement. The last group
    of words is filled up with zero codes.
    """
    import torch

    planes = []
    for plane in planes_of(bits, order):
        count = len(plane.codes)
        padded = torch.nn.functional.pad(codes.to(torch.int32), (0, -codes.shape[-1] % count))
        lanes = padded.unflatten(-1, (-1, count)).unbind(-1)
        words = [torch.zeros_like(lanes[0]) for _ in range(plane.words)]
        for lane, pieces in zip(lanes, plane.codes, strict=True):
            for piece in pieces:
                words[piece.word] |= (lane >> piece.low & (1 << piece.width) - 1) << piece.shift
        planes.append(torch.stack(words, -1).flatten(-2))
    return planes


def unpack(
    planes: list[torch.Tensor], bits: int, signed: bool, order: str = "pairs"
) -> torch.Tensor:
    """Codes of planes [..., words]: int8 if signed, else uint8, [..., codes of whole groups].

    Planes of one tensor may differ in what they hold beyond the last code; the shortest counts.
    """
    import torch

    parts = []
    for plane, words in zip(planes_of(bits, order), planes, strict=True):
        group = words.unflatten(-1, (-1, plane.words)).unbind(-1)
        found = [
            [(group[p.word] >> p.shift & (1 << p.width) - 1) << p.low for p in pieces]
            for pieces in plane.codes
        ]
        codes = [reduce(torch.bitwise_or, pieces) for pieces in found]
        parts.append(torch.stack(codes, -1).flatten(-2))
    length = min(p.shape[-1] for p in parts)
    total = torch.stack([p[..., :length] for p in parts]).sum(0)
    if signed:
        return (total - (total >> bits - 1 << bits)).to(torch.int8)
    return total.to(torch.uint8)
