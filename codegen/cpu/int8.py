"""Dots of bytes on a CPU: 8-bit activations by unsigned codes, four products to a 32-bit lane.

A quad is four neighbours along K. Those of a weight are the bytes of a lane, one lane for each
column; that of a row of x is repeated in every lane. Sums are i32, and exact.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import f32, i8, i16, i32
from xdsl.ir import Attribute, SSAValue

from gqc.codegen.cpu.dot import accumulate
from gqc.codegen.cpu.emitter import BinaryOp, Emitter, Index
from gqc.codegen.cpu.functions import WHOLE
from gqc.codegen.cpu.tiles import Loaded, Registers, Tile, Vectors, shifted
from gqc.errors import GqcError
from gqc.formats.elements import Element
from gqc.formats.packing import WORD, planes_of, whole_words

QUAD = 4


# Tiles


@dataclass(frozen=True, eq=False)
class Quads(Tile):
    """Unsigned codes of planes of 32-bit words in the order `quads`, along the rows."""

    planes: tuple[Loaded, ...]
    format: Element

    @property
    def granule(self) -> int:
        return whole_words(self.format.bits)

    def quad(self, e: Emitter, i: Index) -> Vectors:
        """Codes of rows i to i + 3, as the bytes of each lane."""
        codes: Vectors = []
        for loaded, plane in zip(self.planes, planes_of(self.format.bits, "quads"), strict=True):
            (piece,) = plane.codes[i.offset % len(plane.codes)]
            mask = ((1 << piece.width) - 1) * 0x01010101 << piece.low
            words = loaded.words_of(e, i, plane, piece.word)
            words = shifted(e, words, piece.shift - piece.low)
            bits = [cleared(e, word, mask) for word in words]
            codes = [e.or_(c, b) for c, b in zip(codes, bits, strict=True)] if codes else bits
        return codes

    def row(self, e: Emitter, i: Index) -> Vectors:
        raise GqcError("one row of codes that lie in quads")

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one code of a packed tile")


def cleared(e: Emitter, value: SSAValue, mask: int) -> SSAValue:
    """Bits under a mask, which may be all of them."""
    return value if mask == 0xFFFFFFFF else e.and_(value, mask)


@dataclass(frozen=True, eq=False)
class Whole(Tile):
    """An f32 tile of whole numbers, below 2^22 in magnitude, as i32."""

    source: Tile

    def convert(self, e: Emitter, value: SSAValue) -> SSAValue:
        return whole(e, value)

    def row(self, e: Emitter, i: Index) -> Vectors:
        return [self.convert(e, v) for v in self.source.row(e, i)]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.convert(e, self.source.splat(e, i, j))


@dataclass(frozen=True, eq=False)
class Floats(Whole):
    """An i32 tile as f32."""

    def convert(self, e: Emitter, value: SSAValue) -> SSAValue:
        return e.emit(llvm.SIToFPOp(value, e.vector(f32)))


@dataclass(frozen=True, eq=False)
class Combined(Tile):
    """The product or the sum of two i32 tiles."""

    operation: BinaryOp
    a: Tile
    b: Tile

    def row(self, e: Emitter, i: Index) -> Vectors:
        pairs = zip(self.a.row(e, i), self.b.row(e, i), strict=True)
        return [e.emit(self.operation(a, b)) for a, b in pairs]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return e.arithmetic(self.operation, self.a.splat(e, i, j), self.b.splat(e, i, j))


def whole(e: Emitter, value: SSAValue) -> SSAValue:
    """Whole numbers of f32 lanes, below 2^22 in magnitude, as i32: adding moves them down."""
    moved = e.bitcast(e.emit(llvm.FAddOp(value, e.full(WHOLE))), e.vector(i32))
    return e.emit(llvm.SubOp(moved, e.bitcast(e.full(WHOLE), e.vector(i32))))


def as_bytes(e: Emitter, value: SSAValue) -> SSAValue:
    """Whole numbers of f32 lanes as bytes."""
    return e.emit(llvm.TruncOp(whole(e, value), e.vector(i8)))


# The dot


class Multiply(ABC):
    """How a quad of x and a quad of codes are multiplied; each is prepared once for its uses."""

    unrolled = 2
    """Quads in a round of the loop: more of them make LLVM spill what several instructions need."""

    def x(self, e: Emitter, quad: SSAValue) -> Vectors:
        return [quad]

    def codes(self, e: Emitter, quad: SSAValue) -> Vectors:
        return [quad]

    @abstractmethod
    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        """The sums, and four products more in each lane."""


class Vpdpbusd(Multiply):
    """One instruction of VNNI, which does not saturate."""

    unrolled = 8

    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        assert e.isa.dot_u8s8
        return e.intrinsic(e.isa.dot_u8s8, [total, *codes, *x], total.type)


class Vpmaddubsw(Multiply):
    """Sums of two products in i16, which codes of fewer than 8 bits do not reach the ends of."""

    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        assert e.isa.madd_u8s8 and e.isa.madd_i16
        bytes_, halves = parts(e, i8), parts(e, i16)
        operands = [e.bitcast(v, bytes_) for v in (*codes, *x)]
        pairs = e.intrinsic(e.isa.madd_u8s8, operands, halves)
        ones = e.dense(i16, [1] * (2 * e.isa.lanes))
        return added(e, total, e.intrinsic(e.isa.madd_i16, [pairs, ones], total.type))


class Vpmaddwd(Multiply):
    """Even bytes and odd ones as i16: exact for every code."""

    def x(self, e: Emitter, quad: SSAValue) -> Vectors:
        halves = e.bitcast(quad, parts(e, i16))
        eight = e.dense(i16, [8] * (2 * e.isa.lanes))
        even = e.emit(llvm.AShrOp(e.emit(llvm.ShlOp(halves, eight)), eight))
        return [even, e.emit(llvm.AShrOp(halves, eight))]

    def codes(self, e: Emitter, quad: SSAValue) -> Vectors:
        even = e.bitcast(e.and_(quad, 0x00FF00FF), parts(e, i16))
        eight = e.dense(i16, [8] * (2 * e.isa.lanes))
        return [even, e.emit(llvm.LShrOp(e.bitcast(quad, even.type), eight))]

    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        assert e.isa.madd_i16
        for pair in zip(codes, x, strict=True):
            total = added(e, total, e.intrinsic(e.isa.madd_i16, pair, total.type))
        return total


class Sdot(Multiply):
    """One instruction of signed bytes, which codes of fewer than 8 bits are too."""

    unrolled = 8

    def x(self, e: Emitter, quad: SSAValue) -> Vectors:
        return [e.bitcast(quad, parts(e, i8))]

    codes = x

    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        assert e.isa.dot_s8s8
        return e.intrinsic(e.isa.dot_s8s8, [total, *codes, *x[:1]], total.type)


class SdotOfBytes(Sdot):
    """The same of all bytes: they are multiplied less 128, and 128 times the sum of x is added."""

    def x(self, e: Emitter, quad: SSAValue) -> Vectors:
        quads = super().x(e, quad)
        half = [e.dense(i8, [64] * (QUAD * e.isa.lanes))]
        missing = super().add(e, e.bits(0), quads, half)
        return [*quads, super().add(e, missing, quads, half)]

    def codes(self, e: Emitter, quad: SSAValue) -> Vectors:
        return super().codes(e, e.emit(llvm.XOrOp(quad, e.bits(0x80808080))))

    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        return added(e, super().add(e, total, x, codes), x[1])


class Plain(Multiply):
    """Byte by byte in i32 lanes."""

    def x(self, e: Emitter, quad: SSAValue) -> Vectors:
        top = e.bits(WORD - 8)
        lefts = [e.shift(quad, -(WORD - 8 - 8 * n)) for n in range(QUAD)]
        return [e.emit(llvm.AShrOp(left, top)) for left in lefts]

    def codes(self, e: Emitter, quad: SSAValue) -> Vectors:
        return [e.and_(e.shift(quad, 8 * n), 0xFF) for n in range(QUAD)]

    def add(self, e: Emitter, total: SSAValue, x: Vectors, codes: Vectors) -> SSAValue:
        for pair in zip(codes, x, strict=True):
            total = added(e, total, e.emit(llvm.MulOp(*pair)))
        return total


def parts(e: Emitter, element: Attribute) -> Attribute:
    """The type of a vector of 32-bit lanes as one of bytes or halves."""
    return e.vector(element, e.isa.lanes * (QUAD if element == i8 else 2))


def added(e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
    return e.emit(llvm.AddOp(a, b))


def multiplication(e: Emitter, format: Element) -> Multiply:
    """The best that the tier has for codes of a width."""
    byte = format.bits == 8
    if e.isa.dot_u8s8:
        return Vpdpbusd()
    if e.isa.madd_i16:
        return Vpmaddwd() if byte else Vpmaddubsw()
    if e.isa.dot_s8s8:
        return SdotOfBytes() if byte else Sdot()
    return Plain()


def dot(e: Emitter, acc: Tile, lhs: Loaded, rhs: Quads) -> Registers:
    """acc + lhs · rhs in i32."""
    width, multiply = len(acc.vectors(e)), multiplication(e, rhs.format)

    def add(sums: Vectors, k: Index) -> None:
        columns = [multiply.codes(e, quad) for quad in rhs.quad(e, k)]
        for m in range(acc.rows):
            left = multiply.x(e, lhs.quad_splat(e, Index.constant(m), k))
            for v, right in enumerate(columns, m * width):
                sums[v] = multiply.add(e, sums[v], left, right)

    wanted = max(rhs.granule, multiply.unrolled * QUAD)
    return accumulate(e, acc, lhs.columns, QUAD, wanted, add)
