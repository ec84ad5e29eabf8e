"""Codes out of dense little-endian bit streams, as most formats store them."""

from __future__ import annotations

import math

import torch


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
