"""Tiles of packed codes, and the values they stand for.

Codes are i32 lanes whose bits above the code's width may be anything: a look-up in a table that is
repeated over the whole register ignores those bits, so most codes are never masked.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import f32, i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu import tables
from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import Loaded, Tile, Vectors, as_pairs, half
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

    def whole_words(self, e: Emitter, i: Index) -> Vectors:
        """The words of 8-bit codes that hold row i, and three others."""
        (plane,) = self.planes
        return plane.words_of(e, i, WORD // 8)

    def extract(self, e: Emitter, i: Index, repeat: int) -> Vectors:
        """Bits of every plane, each shifted to its place in the code."""
        codes: Vectors = []
        low = 0
        for plane, width in zip(self.planes, planes_of(self.format.bits), strict=True):
            per_word = WORD // width
            right = shifts_of(width)[i.offset % per_word] - low
            bits = [e.shift(word, right) for word in plane.words_of(e, i, per_word)]
            mask = ((1 << low) - 1) * repeat
            codes = [e.merge(c, b, mask) for c, b in zip(codes, bits, strict=True)] if low else bits
            low += width
        return codes

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
        if self.in_pairs(e) and self.source.format.bits > e.isa.table_bits:
            odd = i.offset % 2
            return [half(e, pair, odd == 1) for pair in self.pair_words(e, i + -odd)]
        return [decode(e, code, self.source.format) for code in self.source.row(e, i)]

    def in_pairs(self, e: Emitter) -> bool:
        """Whether pairs of rows are decoded at once, to bf16."""
        return not self.source.along_lanes and e.isa.decodes_pairs(self.source.format.bits)

    def pair(self, e: Emitter, i: Index) -> Vectors:
        if not self.in_pairs(e):
            return super().pair(e, i)
        return [as_pairs(e, words) for words in self.pair_words(e, i)]

    def pair_words(self, e: Emitter, i: Index) -> Vectors:
        """Rows i and i + 1, i even, as bf16 pairs in 32-bit lanes."""
        format = self.source.format

        def make() -> Vectors:
            if format.bits == 8:
                words = self.source.whole_words(e, i)
                return [tables.pairs_of_bytes(e, word, format, i.offset) for word in words]
            return [tables.pairs(e, codes, format) for codes in self.source.pair_codes(e, i)]

        return e.once(("pairs", self, i.base, i.offset), make)

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one element of a packed tile")


def decode(e: Emitter, code: SSAValue, format: Element) -> SSAValue:
    """f32 values of i32 codes whose bits above the format's width may be anything."""
    if format.bits <= e.isa.table_bits:
        table = e.dense(f32, tables.repeated(format.values, e.isa.lanes))
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
