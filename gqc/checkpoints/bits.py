"""Codes out of dense little-endian bit streams, as most formats store them."""

from __future__ import annotations

import math

import torch

from gqc.formats.packing import slices


def words_of(count: int, bits: int, word: int = 32) -> int:
    """Number of words of `word` bits that hold `count` codes."""
    return -(-count * bits // word)


def unpack(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Codes [..., count], uint8, of bit streams along the last dimension of `words`.

    words: int32 or uint8, [..., W]. Code i has bits i·b to i·b + b − 1 of a row, of which bit j is
    bit j mod w of word j // w, for words of w bits; codes may lie in two words.
    """
    width = words.element_size() * 8
    period = width // math.gcd(width, bits)  # codes until one begins with a word again
    per_period = period * bits // width
    missing = -words.shape[-1] % per_period
    words = torch.nn.functional.pad(words, (0, missing)) if missing else words
    lanes = words.unflatten(-1, (-1, per_period))
    codes = torch.empty(*lanes.shape[:-1], period, dtype=torch.uint8)
    for i in range(period):
        word, shift = divmod(i * bits, width)
        low = min(bits, width - shift)
        code = lanes[..., word].to(torch.int32) >> shift & (1 << low) - 1
        if low < bits:
            code |= lanes[..., word + 1].to(torch.int32) << low
        codes[..., i] = code & (1 << bits) - 1
    return codes.flatten(-2)[..., :count]


LOW_HALVES = {8: 0x00FF00FF00FF00FF, 16: 0x0000FFFF0000FFFF, 32: 0x00000000FFFFFFFF}
"""In 64 bits, the low one of every two lanes of each width."""

NARROW = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers of as many bytes as a code has bits, which eight codes fill."""


def pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bit streams, uint8 [..., ceil(K·b/8)], of codes [..., K], int8 or uint8: see `unpack`.

    Codes are taken modulo 2**bits, so signed ones are in two's complement.
    """
    k = codes.shape[-1]
    rows = codes.reshape(-1, k).view(torch.uint8)
    words = torch.empty(len(rows), words_of(k, bits, 8), dtype=torch.uint8)
    first = 0
    for part in slices(rows):
        packed = packed_rows(part, bits)[:, : words.shape[1]]
        words[first : first + len(part)] = packed
        first += len(part)
    return words.view(*codes.shape[:-1], -1)


def packed_rows(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Bytes [R, W·b] of codes [R, K], W being K/8 rounded up; codes past K are zero.

    Eight codes lie in an integer of 64 bits, where neighbours move together: bytes, then pairs of
    them, then both halves.
    """
    missing = -codes.shape[1] % 8
    codes = torch.nn.functional.pad(codes, (0, missing)) if missing else codes.contiguous()
    lanes = (codes & (1 << bits) - 1).view(torch.int64)
    for width, low in LOW_HALVES.items():
        used = bits * width // 8  # bits of a code, two, four
        moved = lanes >> width - used
        lanes &= low
        lanes |= moved.bitwise_and_(low << used)
    if bits in NARROW:
        return lanes.to(NARROW[bits]).view(torch.uint8)
    return lanes.view(torch.uint8).unflatten(1, (-1, 8))[..., :bits].flatten(1)


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """The same streams in int32 [..., ceil(K·b/32)]."""
    stream = pack(codes, bits)
    missing = -stream.shape[-1] % 4
    stream = torch.nn.functional.pad(stream, (0, missing)) if missing else stream
    return stream.view(torch.int32)
