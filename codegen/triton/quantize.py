"""Print `tile.qcast`: as calls of helper functions, whose arithmetic is that of
`gqc.formats.microscaling` on float32 and its bits.

Tiles that quantizing gives are held as what they stand for, in float32; bytes are made of them
where a byte is wanted.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from gqc.dialects import tile
from gqc.formats.elements import Element
from gqc.formats.microscaling import E4M3, E8M0, INF_IS_GREATEST, MX_ROUNDING, whole_quanta

if TYPE_CHECKING:
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


def bits_of(value: float) -> int:
    """Bits of a value that float32 holds exactly."""
    return struct.unpack("<I", struct.pack("<f", value))[0]


def grid_of(element: Element) -> str:
    """The arguments of `round_to` that say what it rounds to."""
    least, up = whole_quanta(element)
    nan = 0 if element.specials == "none" else 0x7FC00000
    return f"{bits_of(element.maximum):#x}, {least:#x}, {up:#x}, {nan:#x}"


HELPERS = {
    "block_amax": BLOCK_AMAX,
    "mx_scale": MX_SCALE,
    "nvfp4_scale": NVFP4_SCALE.format(e4m3=grid_of(E4M3)),
    "round_to": ROUND_TO,
    "over_powers": OVER_POWERS,
    "over_scales": OVER_SCALES,
}


def qcast(printer: Emitter, op: tile.QcastOp) -> None:
    """Print the scales, then the values that the codes stand for."""
    x, (element, scale_format) = printer.texts[op.source], op.formats
    for name in ("block_amax", "round_to"):
        printer.helper(name)
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
        arguments = f"{x}, {of_tensor}, {op.block}, {element.maximum}"
        printer.writer.assign(scale, f"{printer.helper('nvfp4_scale')}({arguments})")
        scaled = f"{printer.helper('over_scales')}({x}, {scale}, {of_tensor})"
    rounded = f"round_to({scaled}, {grid_of(element)})"
    if element.is_integer:  # which have one zero
        rounded += " + 0.0"
    printer.writer.assign(printer.fresh_result(op.codes), rounded)
    printer.values |= {op.codes, op.scale}
