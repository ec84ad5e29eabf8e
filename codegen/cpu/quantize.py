"""Quantizing on a CPU: elements are rounded to the grid of their format where they lie.

Codes are held as their values, which rounding gives at once: what reads them wants these, and 8-bit
integers become codes where they are stored (`int8.as_bytes`). Bits and
rules are those of `gqc.formats.microscaling`, whose arithmetic on one number is done on lanes here.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import f32, i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.functions import divide
from gqc.codegen.cpu.tiles import Tile, Vectors
from gqc.errors import GqcError
from gqc.formats.elements import SCALES, Element
from gqc.formats.microscaling import (
    BIAS,
    E4M3,
    E8M0,
    FRACTION_BITS,
    INF_IS_GREATEST,
    LEAST_NORMAL,
    MX_ROUNDING,
    whole_quanta,
)

F32 = SCALES["f32"]
SIGN = 0x80000000
MAGNITUDE = 0x7FFFFFFF
INFINITY = 0x7F800000
NAN = 0x7FC00000


@dataclass(frozen=True, eq=False)
class BlockScales(Tile):
    """The scale of each block of a tile, as f32."""

    source: Tile
    tensor_scale: Tile | None
    rule: str
    format: Element
    scale_format: Element

    def row(self, e: Emitter, i: Index) -> Vectors:
        raise GqcError("scales of blocks along the lanes of a CPU kernel")

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        assert j.base is None, "blocks are not indexed at run time"
        return e.once((self, i.base, i.offset, j.offset), lambda: self.scale(e, i, j.offset))

    def scale(self, e: Emitter, i: Index, block: int) -> SSAValue:
        vectors = self.values(e, i)
        per_block = len(vectors) // self.columns
        amax = greatest_magnitude(e, vectors[block * per_block : (block + 1) * per_block])
        if self.scale_format == E8M0:
            return mx_scale(e, amax, self.format, self.rule)
        if self.scale_format == F32:
            return f32_scale(e, amax, self.format)
        return nvfp4_scale(e, amax, self.format, self.of_tensor(e))

    def values(self, e: Emitter, i: Index) -> Vectors:
        """Row i of what is quantized, loaded once for its scales and its elements."""
        return e.once(("values", self, i.base, i.offset), lambda: self.source.row(e, i))

    def of_tensor(self, e: Emitter) -> SSAValue | None:
        if self.tensor_scale is None:
            return None
        return self.tensor_scale.splat(e, Index.constant(0), Index.constant(0))

    def step(self, e: Emitter, i: Index, block: int) -> SSAValue:
        """What the elements of a block are divided by."""
        scale, of_tensor = self.splat(e, i, Index.constant(block)), self.of_tensor(e)
        if of_tensor is None:
            return scale
        return e.once(("step", scale), lambda: e.fmul(scale, of_tensor))


@dataclass(frozen=True, eq=False)
class Quantized(Tile):
    """The values of the codes that quantizing gives, as f32."""

    scales: BlockScales

    def row(self, e: Emitter, i: Index) -> Vectors:
        vectors = self.scales.values(e, i)
        per_block = len(vectors) // self.scales.columns
        steps = [self.scales.step(e, i, n // per_block) for n in range(len(vectors))]
        return [
            round_to(e, divide(e, vector, step), self.scales.format)
            for vector, step in zip(vectors, steps, strict=True)
        ]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one element of a tile that is quantized on a CPU")


# Scales


def greatest_magnitude(e: Emitter, vectors: Vectors) -> SSAValue:
    """Bits of the greatest magnitude of some vectors, in every lane; NaN's are above infinity's."""
    first, *rest = [e.and_(e.bitcast(v, e.vector(i32)), MAGNITUDE) for v in vectors]
    for vector in rest:
        first = e.extreme("umax", first, vector)
    distance = e.isa.lanes // 2
    while distance:
        other = e.shuffle(first, [lane ^ distance for lane in range(e.isa.lanes)])
        first = e.extreme("umax", first, other)
        distance //= 2
    return first


def mx_scale(e: Emitter, amax: SSAValue, element: Element, rule: str) -> SSAValue:
    """E8M0 scales as f32, of the bits of amax."""
    raised = e.emit(llvm.AddOp(amax, e.bits(MX_ROUNDING[rule](element))))
    exponent = e.emit(llvm.SubOp(e.shift(raised, FRACTION_BITS), e.bits(element.emax)))
    exponent = e.extreme("smax", e.extreme("smin", exponent, e.bits(2 * BIAS)), e.bits(0))
    if rule in INF_IS_GREATEST:
        is_inf = e.compare("eq", amax, e.bits(INFINITY))
        exponent = e.select(is_inf, e.bits(2 * BIAS), exponent)
    exponent = e.select(is_nan(e, amax), e.bits(2 * BIAS + 1), exponent)
    return e.power_of_e8m0(exponent)


def f32_scale(e: Emitter, amax: SSAValue, element: Element) -> SSAValue:
    """Scales in f32, of the bits of amax."""
    finite = e.bitcast(e.extreme("umin", amax, e.bits(INFINITY - 1)), e.vector(f32))
    bits = e.bitcast(divide(e, finite, e.full(element.maximum)), e.vector(i32))
    raised = e.extreme("umax", bits, e.bits(bits_of(LEAST_NORMAL)))
    return e.bitcast(e.select(is_nan(e, amax), e.bits(NAN), raised), e.vector(f32))


def nvfp4_scale(
    e: Emitter, amax: SSAValue, element: Element, of_tensor: SSAValue | None
) -> SSAValue:
    """E4M3 scales as f32, of the bits of amax; the least one stands for those below."""
    scale = divide(e, e.bitcast(amax, e.vector(f32)), e.full(element.maximum))
    if of_tensor is not None:
        scale = divide(e, scale, of_tensor)
    bits = e.bitcast(scale, e.vector(i32))
    raised = e.extreme("smax", bits, e.bits(bits_of(E4M3.decode(1))))
    rounded = round_to(e, e.bitcast(raised, e.vector(f32)), E4M3)
    return e.select(
        is_nan(e, e.and_(bits, MAGNITUDE)), e.bitcast(e.bits(NAN), rounded.type), rounded
    )


# Elements


def round_to(e: Emitter, value: SSAValue, element: Element) -> SSAValue:
    """The nearest values of an element format, ties to even, saturating.

    Adding and subtracting 2^23 quanta rounds to whole quanta: the sum has no bits below them.
    """
    bits = e.bitcast(value, e.vector(i32))
    magnitude = e.and_(bits, MAGNITUDE)
    kept = e.extreme("umin", magnitude, e.bits(bits_of(element.maximum)))
    least, up = whole_quanta(element)
    power = e.extreme("umax", e.and_(kept, INFINITY), e.bits(least))
    whole = e.emit(llvm.AddOp(power, e.bits(up)))
    whole = e.bitcast(whole, e.vector(f32))
    rounded = e.fsub(e.fadd(e.bitcast(kept, e.vector(f32)), whole), whole)
    sign = e.and_(bits, SIGN)
    signed = e.bitcast(e.or_(e.bitcast(rounded, e.vector(i32)), sign), e.vector(f32))
    if element.is_integer:  # which have one zero
        signed = e.fadd(signed, e.full(0.0))
    nan = e.bits(0 if element.specials == "none" else NAN)
    return e.select(is_nan(e, magnitude), e.bitcast(nan, e.vector(f32)), signed)


def is_nan(e: Emitter, magnitude: SSAValue) -> SSAValue:
    return e.compare("ugt", magnitude, e.bits(INFINITY))


def bits_of(value: float) -> int:
    """Bits of a value that f32 holds exactly."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return bits
