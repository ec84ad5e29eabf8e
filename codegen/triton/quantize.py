"""Print `tile.qcast`: as calls of helper functions, whose arithmetic is that of
`gqc.formats.microscaling` on float32 and its bits.

Tiles that quantizing gives are held as what they stand for, in float32; bytes are made of them
where a byte is wanted, by an instruction of the GPU where it has one (`CONVERSIONS`).
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gqc.dialects import tile
from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS, Element
from gqc.formats.microscaling import E4M3, E8M0, INF_IS_GREATEST, MX_ROUNDING, whole_quanta

if TYPE_CHECKING:
    from xdsl.ir import SSAValue

    from gqc.codegen.triton.emitter import Emitter

BLOCK_AMAX = '''
@triton.jit
def block_amax(x, BLOCK: tl.constexpr):
    """Bits int32 [R, C // BLOCK] of the greatest magnitudes of blocks of x float32 [R, C].

    Those of NaN are above infinity's.
    """
    bits = x.to(tl.int32, bitcast=True) & 0x7FFFFFFF
    return tl.max(tl.reshape(bits, (x.shape[0], x.shape[1] // BLOCK, BLOCK)), axis=2)
'''

MX_SCALE = '''
@triton.jit
def mx_scale(x, BLOCK: tl.constexpr, CARRY: tl.constexpr, EMAX: tl.constexpr, INF: tl.constexpr):
    """Scales of E8M0, as float32 [R, C // BLOCK], of blocks of x float32 [R, C].

    The exponent of the greatest magnitude, once CARRY is added to its bits, less EMAX; that of
    infinity, or the greatest one if INF is set.
    """
    amax = block_amax(x, BLOCK)
    exponent = tl.minimum(tl.maximum(((amax + CARRY) >> 23) - EMAX, 0), 254)
    if INF:
        exponent = tl.where(amax == 0x7F800000, 254, exponent)
    exponent = tl.where(amax > 0x7F800000, 255, exponent)
    # The ends, 2^-127 and NaN, need a bit more than the exponent.
    fraction = tl.where(((exponent + 1) & 0xFE) == 0, 0x400000, 0)
    return ((exponent << 23) | fraction).to(tl.float32, bitcast=True)
'''

NVFP4_SCALE = '''
@triton.jit
def nvfp4_scale(x, tensor_scale, BLOCK: tl.constexpr, MAXIMUM: tl.constexpr):
    """Scales of E4M3, as float32 [R, C // BLOCK], of blocks of x float32 [R, C].

    The greatest magnitude over that of an element, over the scale of the tensor, float32 [1].
    """
    amax = block_amax(x, BLOCK).to(tl.float32, bitcast=True)
    scale = tl.div_rn(tl.div_rn(amax, MAXIMUM), tensor_scale[None, :])
    scale = tl.where(scale < 0.001953125, 0.001953125, scale)
    return round_to(scale, {e4m3})
'''

ROUND_TO = '''
@triton.jit
def round_to(
    x, MAXIMUM: tl.constexpr, LEAST: tl.constexpr, UP: tl.constexpr, NAN: tl.constexpr
):
    """The nearest values of a format to x float32, ties to even, saturating at bits MAXIMUM.

    Adding and subtracting 2^23 quanta rounds to whole quanta. Their bits follow from those of the
    power of two in x, at least LEAST, by adding UP. NaN becomes that of bits NAN.
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    kept = tl.minimum(magnitude, MAXIMUM)
    whole = (tl.maximum(kept & 0x7F800000, LEAST) + UP).to(tl.float32, bitcast=True)
    rounded = (kept.to(tl.float32, bitcast=True) + whole) - whole
    rounded = rounded.to(tl.int32, bitcast=True) | (bits ^ magnitude)
    return tl.where(magnitude > 0x7F800000, NAN, rounded).to(tl.float32, bitcast=True)
'''

OVER_POWERS = '''
@triton.jit
def over_powers(x, scale):
    """x float32 [R, C] over powers of two float32 [R, C // BLOCK], one a block: exact."""
    BLOCK: tl.constexpr = x.shape[1] // scale.shape[1]
    blocks = tl.reshape(x, (x.shape[0], scale.shape[1], BLOCK))
    return tl.reshape(blocks * tl.div_rn(1.0, scale)[:, :, None], x.shape)
'''

OVER_SCALES = '''
@triton.jit
def over_scales(x, scale, tensor_scale):
    """x float32 [R, C] over scales float32 [R, C // BLOCK], one a block, times the tensor's."""
    BLOCK: tl.constexpr = x.shape[1] // scale.shape[1]
    blocks = tl.reshape(x, (x.shape[0], scale.shape[1], BLOCK))
    step = scale * tensor_scale[None, :]
    return tl.reshape(tl.div_rn(blocks, step[:, :, None]), x.shape)
'''


ENCODE = '''
@triton.jit
def encode(
    x,
    BITS: tl.constexpr,
    MANTISSA: tl.constexpr,
    MAXIMUM: tl.constexpr,
    LEAST: tl.constexpr,
    UP: tl.constexpr,
    NAN: tl.constexpr,
):
    """Codes uint8, of BITS bits, of the values that `round_to` gives; that of NaN is NAN.

    What adding 2^23 quanta changes in their bits is how many quanta x has. Codes of one sign are
    consecutive, so that these, added to the exponent, carry into it.
    """
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    kept = tl.minimum(magnitude, MAXIMUM)
    power = tl.maximum(kept & 0x7F800000, LEAST)
    whole = (power + UP).to(tl.float32, bitcast=True)
    quanta = (kept.to(tl.float32, bitcast=True) + whole).to(tl.int32, bitcast=True) - (power + UP)
    codes = ((power - LEAST) >> (23 - MANTISSA)) + quanta
    codes = codes | (bits >> (32 - BITS)) & (1 << (BITS - 1))
    return tl.where(magnitude > 0x7F800000, NAN, codes).to(tl.uint8)
'''

ENCODE_E8M0 = '''
@triton.jit
def encode_e8m0(scales):
    """Biased exponents uint8 of powers of two float32: 0 of 2^-127, 255 of NaN."""
    return (scales.to(tl.int32, bitcast=True) >> 23).to(tl.uint8)
'''

PAIR_UP = '''
@triton.jit
def pair_up(codes):
    """Bytes uint8 [R, C // 2] of codes of 4 bits uint8 [R, C], the even ones low."""
    low, high = tl.split(tl.reshape(codes, (codes.shape[0], codes.shape[1] // 2, 2)))
    return low | (high << 4)
'''

CONVERT_E2M1 = '''
@triton.jit
def convert_e2m1(x):
    """Bytes uint8 [R, C // 2] of the codes E2M1 nearest to x float32 [R, C], the even ones low.

    The instruction would make the greatest of NaN.
    """
    low, high = tl.split(tl.reshape(tl.where(x == x, x, 0.0), (x.shape[0], x.shape[1] // 2, 2)))
    return tl.inline_asm_elementwise(
        """{
        .reg .b8 a, b, c, d;
        cvt.rn.satfinite.e2m1x2.f32 a, $5, $1;
        cvt.rn.satfinite.e2m1x2.f32 b, $6, $2;
        cvt.rn.satfinite.e2m1x2.f32 c, $7, $3;
        cvt.rn.satfinite.e2m1x2.f32 d, $8, $4;
        mov.b32 $0, {a, b, c, d};
        }""",
        constraints="=r,r,r,r,r,r,r,r,r",
        args=[low, high],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )
'''

CONVERT_FP8 = '''
@triton.jit
def convert_FORMAT(x):
    """Codes uint8, in the shape of x float32, nearest to x."""
    return tl.inline_asm_elementwise(
        """{
        .reg .b16 a, b;
        cvt.rn.satfinite.FORMATx2.f32 a, $2, $1;
        cvt.rn.satfinite.FORMATx2.f32 b, $4, $3;
        mov.b32 $0, {a, b};
        }""",
        constraints="=r,r,r,r,r",
        args=[x],
        dtype=tl.uint8,
        is_pure=True,
        pack=4,
    )
'''

FP8_GPUS = ("sm_89", "sm_90", "sm_100", "sm_103", "sm_120")
CONVERSIONS = {
    "f4E2M1FN": ("convert_e2m1", ("sm_100", "sm_103", "sm_120")),
    "f8E4M3FN": ("convert_e4m3", FP8_GPUS),
    "f8E5M2": ("convert_e5m2", FP8_GPUS),
}
"""Elements: the helper that makes bytes of float32 by `cvt.rn.satfinite`, and the GPUs that have
it (PTX ISA). Ties go to even, and what is beyond saturates."""


def bits_of(value: float) -> int:
    """Bits of a value that float32 holds exactly."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def grid_of(element: Element, nan: int) -> str:
    """The arguments of `round_to` and `encode` that say what they round to."""
    least, up = whole_quanta(element)
    return f"{bits_of(element.maximum):#x}, {least:#x}, {up:#x}, {nan:#x}"


def rounding(element: Element) -> str:
    """Of `round_to`."""
    return grid_of(element, 0 if element.specials == "none" else 0x7FC00000)


def encoding(element: Element) -> str:
    """Of `encode`, which come after its widths."""
    nan = 0 if element.specials == "none" else (1 << element.bits - 1) - 1
    return f"{element.bits}, {element.mantissa}, {grid_of(element, nan)}"


HELPERS = {
    "block_amax": BLOCK_AMAX,
    "mx_scale": MX_SCALE,
    "nvfp4_scale": NVFP4_SCALE.format(e4m3=rounding(E4M3)),
    "round_to": ROUND_TO,
    "over_powers": OVER_POWERS,
    "over_scales": OVER_SCALES,
    "encode": ENCODE,
    "encode_e8m0": ENCODE_E8M0,
    "pair_up": PAIR_UP,
    "convert_e2m1": CONVERT_E2M1,
    "convert_e4m3": CONVERT_FP8.replace("FORMAT", "e4m3"),
    "convert_e5m2": CONVERT_FP8.replace("FORMAT", "e5m2"),
}


def qcast(printer: Emitter, op: tile.QcastOp) -> None:
    """Print the scales, then the values that the codes stand for."""
    x, (element, scale_format) = printer.texts[op.source], op.formats
    if scale_format not in (E8M0, E4M3):
        what = f"scales of {scale_format.name}"
        raise GqcError(f"kernel {printer.name}: the Triton backend quantizes under no {what}")
    printer.helper("block_amax")
    scale = printer.fresh_result(op.scale)
    if scale_format == E8M0:
        carry, is_inf = MX_ROUNDING[op.rule.data](element), op.rule.data in INF_IS_GREATEST
        arguments = f"{x}, {op.block}, {carry:#x}, {element.emax}, {is_inf}"
        printer.writer.assign(scale, f"{printer.helper('mx_scale')}({arguments})")
        scaled = f"{printer.helper('over_powers')}({x}, {scale})"
    else:
        of_tensor = "tl.full((1,), 1.0, tl.float32)"
        if op.tensor_scale is not None:
            of_tensor = printer.texts[op.tensor_scale]
        printer.helper("round_to")
        arguments = f"{x}, {of_tensor}, {op.block}, {element.maximum}"
        printer.writer.assign(scale, f"{printer.helper('nvfp4_scale')}({arguments})")
        scaled = f"{printer.helper('over_scales')}({x}, {scale}, {of_tensor})"
    if any(isinstance(use.operation, tile.CastOp) for use in op.codes.uses):
        scaled = f"{printer.helper('round_to')}({scaled}, {rounding(element)})"
    if element.is_integer:  # which have one zero
        scaled += " + 0.0"
    printer.writer.assign(printer.fresh_result(op.codes), scaled)
    printer.values |= {op.codes: element, op.scale: scale_format}


def cast(printer: Emitter, op: tile.CastOp) -> str:
    """Values as floats, or as those of other codes, which have them all."""
    text, kind = printer.texts[op.source], str(tile.element_of(op.result))
    if kind in ELEMENTS:
        printer.values[op.result] = ELEMENTS[kind]
        return text
    assert kind == "f32"
    return text


def stored(printer: Emitter, value: SSAValue) -> str:
    """A tile as it is stored: of codes or scales that are held in float32, their bytes."""
    text = printer.texts[value]
    if value not in printer.values:
        return text
    element = printer.values[value]
    if element == E8M0:
        return f"{printer.helper('encode_e8m0')}({text})"
    if element.is_integer:
        raise GqcError(f"kernel {printer.name}: Triton makes no bytes of {element.name}")
    helper, targets = CONVERSIONS.get(element.name, ("", ()))
    if printer.target in targets:
        return f"{printer.helper(helper)}({text})"
    codes = f"{printer.helper('encode')}({text}, {encoding(element)})"
    return f"{printer.helper('pair_up')}({codes})" if element.bits == 4 else codes
