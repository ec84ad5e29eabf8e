"""Triton functions that printed kernels call, as source: each is printed where it is needed."""

from __future__ import annotations

from gqc.codegen.triton import quantize

UNPACK_PAIRS = '''
@triton.jit
def unpack_pairs(words, BITS: tl.constexpr):
    """Pairs of codes int32 [R, C * 16 // BITS] of words int32 [R, C].

    Even codes lie in the low half of a word, odd ones in the high half: one shift and one mask
    give a pair, and each word stays in its register.
    """
    COUNT: tl.constexpr = 16 // BITS
    MASK: tl.constexpr = ((1 << BITS) - 1) * 0x00010001
    shifted = words[:, :, None] >> (tl.arange(0, COUNT) * BITS)[None, None, :]
    return tl.reshape(shifted & MASK, (words.shape[0], words.shape[1] * COUNT))
'''

SPLIT_PAIRS = '''
@triton.jit
def split_pairs(pairs):
    """Codes int16 [R, 2 * C] of pairs int32 [R, C]."""
    codes = tl.join(pairs.to(tl.int16), (pairs >> 16).to(tl.int16))
    return tl.reshape(codes, (pairs.shape[0], pairs.shape[1] * 2))
'''

REPEAT = '''
@triton.jit
def repeat(tile, TIMES: tl.constexpr):
    """Each column of a tile [R, C] TIMES times over: [R, C * TIMES]."""
    wide = tl.broadcast_to(tile[:, :, None], (tile.shape[0], tile.shape[1], TIMES))
    return tl.reshape(wide, (tile.shape[0], tile.shape[1] * TIMES))
'''

HELPERS = {
    "unpack_pairs": UNPACK_PAIRS,
    "split_pairs": SPLIT_PAIRS,
    "repeat": REPEAT,
    **quantize.HELPERS,
}
