"""Tiles of packed codes, and the values they stand for.

Codes are i32 lanes whose bits above the code's width may be anything: a look-up in a table that is
repeated over the whole register ignores those bits, so most codes are never masked.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import f32, i16, i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import Loaded, Tile, Vectors, as_pairs
from gqc.errors import GqcError
from gqc.formats.elements import Element
from gqc.formats.packing import WORD, planes_of, shifts_of


@dataclass(frozen=True, eq=False)
class Unpacked(Tile):
    """Codes of planes of 32-bit words, packed along the rows or (`along_lanes`) along the lanes.

    The codes' bits above their width are not cleared: what decodes them ignores those bits.
    """

    planes: tuple[Loaded, ...]
    format: Element
    along_lanes: bool

    @property
    def granule(self) -> int:
        return 1 if self.along_lanes else WORD // min(planes_of(self.format.bits))

    def row(self, e: Emitter, i: Index) -> Vectors:
        if self.along_lanes:
            return [self.lanes(e, i, first) for first in self.vectors(e)]
        return self.extract(e, i, 1)

    def pair_codes(self, e: Emitter, i: Index) -> Vectors:
        """Codes of rows i and i + 1, i even, in the halves of each lane: how words hold them."""
        return self.extract(e, i, 0x10001)

    def extract(self, e: Emitter, i: Index, repeat: int) -> Vectors:
        """Bits of every plane, each shifted to its place in the code."""
        codes: Vectors = []
        low = 0
        for plane, width in zip(self.planes, planes_of(self.format.bits), strict=True):
            per_word = WORD // width
            right = shifts_of(width)[i.offset % per_word] - low
            bits = [e.shift(word, right) for word in self.words(e, plane, i, per_word)]
            mask = ((1 << low) - 1) * repeat
            codes = [e.merge(c, b, mask) for c, b in zip(codes, bits, strict=True)] if low else bits
            low += width
        return codes

    def words(self, e: Emitter, plane: Loaded, i: Index, per_word: int) -> Vectors:
        word = e.divide(i, per_word)
        return e.once((plane, word.base, word.offset), lambda: plane.prefetched(e, word))

    def lanes(self, e: Emitter, i: Index, first: int) -> SSAValue:
        """Codes packed along the lanes: each lane picks its word and shifts it."""
        codes: list[SSAValue] = []
        low = 0
        numbers = range(first, first + e.isa.lanes)
        for plane, width in zip(self.planes, planes_of(self.format.bits), strict=True):
            per_word = WORD // width
            words = e.shuffle(plane.words(e, i), [n // per_word for n in numbers])
            shifts = e.dense(i32, [shifts_of(width)[n % per_word] for n in numbers])
            bits = e.shift(e.emit(llvm.LShrOp(words, shifts)), -low)
            codes = [e.merge(c, bits, (1 << low) - 1) for c in codes] or [bits]
            low += width
        return codes[0]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one code of a packed tile")


@dataclass(frozen=True, eq=False)
class Decoded(Tile):
    """The values of codes, exactly."""

    source: Unpacked

    @property
    def granule(self) -> int:
        return self.source.granule

    @property
    def significant(self) -> int:
        return self.source.format.significant

    def row(self, e: Emitter, i: Index) -> Vectors:
        return [decode(e, code, self.source.format) for code in self.source.row(e, i)]

    def pair(self, e: Emitter, i: Index) -> Vectors:
        if self.source.format.bits > e.isa.pair_table_bits:
            return super().pair(e, i)
        return [as_pairs(e, self.look_up(e, codes)) for codes in self.source.pair_codes(e, i)]

    def look_up(self, e: Emitter, codes: SSAValue) -> SSAValue:
        """bf16 values of 16-bit codes, from a table in one register, or in two."""
        format, lanes = self.source.format, 2 * e.isa.lanes
        type_ = e.vector(i16, lanes)
        table, indices = [bf16_bits(v) for v in format.values], e.bitcast(codes, type_)
        if len(table) <= lanes:
            assert e.isa.permute_i16
            whole = e.dense(i16, repeated(table, lanes))
            return e.intrinsic(e.isa.permute_i16, [whole, indices], type_)
        assert e.isa.permute2_i16
        low, high = e.dense(i16, table[:lanes]), e.dense(i16, table[lanes:])
        return e.intrinsic(e.isa.permute2_i16, [low, indices, high], type_)

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one element of a packed tile")


def repeated(values: Sequence[float], count: int) -> list[float]:
    """A table repeated to `count` entries, so that an index's high bits do not matter."""
    return [values[i % len(values)] for i in range(count)]


def bf16_bits(value: float) -> int:
    """Bits of a value that bf16 holds exactly, as a signed 16-bit integer."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return bits >> 16


def decode(e: Emitter, code: SSAValue, format: Element) -> SSAValue:
    """f32 values of i32 codes whose bits above the format's width may be anything."""
    if format.bits <= e.isa.table_bits:
        table = e.dense(f32, repeated(format.values, e.isa.lanes))
        assert e.isa.permute_f32
        return e.intrinsic(e.isa.permute_f32, [table, code], e.vector(f32))
    if format.is_integer:
        return decode_integer(e, code, format)
    return e.decode_float(code, format)


def decode_integer(e: Emitter, code: SSAValue, format: Element) -> SSAValue:
    if format.signed:
        top = e.bits(WORD - format.bits)
        clean = e.emit(llvm.AShrOp(e.emit(llvm.ShlOp(code, top)), top))
    else:
        clean = e.and_(code, (1 << format.bits) - 1)
    return e.emit(llvm.SIToFPOp(clean, e.vector(f32)))
