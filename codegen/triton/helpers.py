"""Triton functions that printed kernels call, as source: each is printed where it is needed."""

from __future__ import annotations

from gqc.codegen.triton import quantize
from gqc.formats.elements import CODEBOOKS, Element

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

DECODE_FLOAT = '''
@triton.jit
def decode_float(codes, BITS: tl.constexpr, MANTISSA: tl.constexpr, RATIO: tl.constexpr):
    """Values, float16, of floating-point codes of BITS bits, with MANTISSA bits of mantissa.

    The fields move to their places in float16; RATIO, 2 to the difference of the exponents' biases,
    makes up for the bias, of subnormals too. All of it is exact.
    """
    SIGN: tl.constexpr = 1 << (BITS - 1)
    wide = codes.to(tl.int16)
    bits = (wide & SIGN) << (16 - BITS) | (wide & (SIGN - 1)) << (10 - MANTISSA)
    return bits.to(tl.float16, bitcast=True) * RATIO
'''

KEEP_NAN = '''
@triton.jit
def keep_nan(values, codes, NAN: tl.constexpr):
    """The values, but NaN for codes of magnitude NAN."""
    return tl.where((codes & NAN) == NAN, float("nan"), values)
'''

DECODE_E8M0 = '''
@triton.jit
def decode_e8m0(codes):
    """Powers of two, float32, of their biased exponents: 0 is 2 ** -127 (subnormal), 255 is NaN."""
    exponent = codes.to(tl.int32)
    ends = tl.where(((exponent + 1) & 0xFE) == 0, 1 << 22, 0)
    return (exponent << 23 | ends).to(tl.float32, bitcast=True)
'''

WIDEN_E2M1 = '''
@triton.jit
def widen_e2m1(bytes):
    """Codes E4M3 uint8 [R, 2 * C] of pairs of codes E2M1 uint8 [R, C]: 1/64 of their values."""
    even = ((bytes & 0x08) << 4) | ((bytes & 0x07) << 2)
    odd = (bytes & 0x80) | ((bytes & 0x70) >> 2)
    return tl.reshape(tl.join(even, odd), (bytes.shape[0], bytes.shape[1] * 2))
'''

TAKE_PANELS = '''
@triton.jit
def take_panels(tile, PANEL: tl.constexpr, PART: tl.constexpr):
    """Every other PANEL columns of a tile [R, C], from the first (PART 0) or second (1) on."""
    PAIRS: tl.constexpr = tile.shape[1] // (2 * PANEL)
    panels = tl.reshape(tile, (tile.shape[0], PAIRS, 2, PANEL))
    first, second = tl.split(tl.permute(panels, (0, 1, 3, 2)))
    return tl.reshape(second if PART else first, (tile.shape[0], PAIRS * PANEL))
'''

TANH = '''
@triton.jit
def tanh(x):
    """tanh x: a polynomial up to 5/8 (to 2 ** -27 of it), beyond that 1 - 2 / (exp(2 |x|) + 1)."""
    s = x * x
    near = 0.020595679957828763 - 0.0056647753538939145 * s
    near = 0.1333115016140752 + (near * s - 0.05372267934294277) * s
    near = (0.9999999961636121 + (near * s - 0.333332616418069) * s) * x
    far = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) <= 0.625, near, tl.where(x < 0.0, -far, far))
'''


def decode_table(element: Element) -> str:
    """Source of the function that decodes a codebook: each bit of a code selects one of two."""
    lines, level = [], [repr(value) for value in element.table]
    for bit in range(element.bits):
        names = [f"v{bit}_{i}" for i in range(len(level) // 2)]
        condition = f"(codes & {1 << bit}) != 0"
        lines += [
            f"{name} = tl.where({condition}, {odd}, {even})"
            for name, even, odd in zip(names, level[::2], level[1::2], strict=True)
        ]
        level = names
    body = "\n    ".join(lines)
    return f'''
@triton.jit
def decode_{element.name}(codes):
    """Values, float32, of codes of {element.name}: each bit of a code selects one of two."""
    {body}
    return {level[0]}
'''


HELPERS = {
    "unpack_pairs": UNPACK_PAIRS,
    "split_pairs": SPLIT_PAIRS,
    "repeat": REPEAT,
    "decode_float": DECODE_FLOAT,
    "keep_nan": KEEP_NAN,
    "decode_e8m0": DECODE_E8M0,
    **{f"decode_{element.name}": decode_table(element) for element in CODEBOOKS},
    **quantize.HELPERS,
    "take_panels": TAKE_PANELS,
    "tanh": TANH,
    "widen_e2m1": WIDEN_E2M1,
}
