"""Tiles of packed codes, and the values they stand for.

Codes are i32 lanes in which a code begins at some bit, and other bits may be anything: a look-up in
a table that is repeated over the whole register ignores them, so most codes are never masked. An
index of such a look-up is wider than narrow codes are, so one shift serves several of them, each
with a table of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from xdsl.dialects import llvm
from xdsl.dialects.builtin import f32, i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu import tables
from gqc.codegen.cpu.emitter import Emitter, Index, magnitude_mask
from gqc.codegen.cpu.tiles import Loaded, Tile, Vectors, as_pairs, half, shifted
from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS, SCALES, Element
from gqc.formats.packing import HALF, WORD, Piece, Plane, planes_of, whole_words


@dataclass(frozen=True, eq=False)
class Unpacked(Tile):
    """Codes of planes of 32-bit words, packed along the rows or (`along_lanes`) along the lanes.

    The codes' bits above their width are not cleared: what decodes them ignores those bits. The top
    bit of `flipped` codes is the opposite of that in memory.
    """

    planes: tuple[Loaded, ...]
    format: Element
    along_lanes: bool
    order: str
    flipped: bool = False

    @property
    def granule(self) -> int:
        return 1 if self.along_lanes else whole_words(self.format.bits)

    def row(self, e: Emitter, i: Index) -> Vectors:
        if self.along_lanes:
            return [self.lanes(e, i, first) for first in self.vectors(e)]
        return self.codes(e, i)[0]

    def codes(
        self, e: Emitter, i: Index, index_bits: int = 0, repeat: int = 1
    ) -> tuple[Vectors, int]:
        """Codes of row i, and the bit of each lane at which they begin.

        It may be one at which codes end within the bits of an index. With a repeat of 0x10001, i
        even, the codes of row i + 1 are in the upper halves of lanes: how words hold them.
        """
        (loaded, plane, piece), *others = self.pieces(i)
        if not others:
            together = max(1, index_bits // piece.width) * piece.width
            start = piece.shift % HALF % together
            return self.shifted(e, i, loaded, plane, piece, start), start
        codes = self.shifted(e, i, loaded, plane, piece, 0)
        for loaded, plane, piece in others:
            above = self.shifted(e, i, loaded, plane, piece, piece.low)
            mask = ((1 << piece.low) - 1) * repeat
            codes = [e.merge(c, a, mask) for c, a in zip(codes, above, strict=True)]
        return codes, 0

    def pieces(self, i: Index) -> list[tuple[Loaded, Plane, Piece]]:
        """Where the code of row i lies, low bits first."""
        planes = zip(self.planes, planes_of(self.format.bits, self.order), strict=True)
        return [
            (loaded, plane, piece)
            for loaded, plane in planes
            for piece in plane.codes[i.offset % len(plane.codes)]
        ]

    def shifted(
        self, e: Emitter, i: Index, loaded: Loaded, plane: Plane, piece: Piece, start: int
    ) -> Vectors:
        """The words of a piece of row i's code, which begins at a bit of them."""
        return shifted(e, self.words(e, i, loaded, plane, piece.word), piece.shift - start)

    def words(self, e: Emitter, i: Index, loaded: Loaded, plane: Plane, number: int) -> Vectors:
        """A word of the group that holds row i, with the top bits of its codes."""
        words = loaded.words_of(e, i, plane, number)
        if not self.flipped:
            return words
        tops = e.bits(self.tops(plane, number))
        return [e.once(("flip", w), lambda w=w: e.emit(llvm.XOrOp(w, tops))) for w in words]

    def tops(self, plane: Plane, number: int) -> int:
        """The top bits of the codes that end in a word of a group."""
        pieces = [p for code in plane.codes for p in code if p.word == number]
        ends = [p.shift + p.width - 1 for p in pieces if p.low + p.width == self.format.bits]
        return sum(1 << end for end in ends)

    def whole_words(self, e: Emitter, i: Index) -> Vectors:
        """The words of 8-bit codes that hold row i, and three others."""
        ((loaded, plane, piece),) = self.pieces(i)
        return self.words(e, i, loaded, plane, piece.word)

    def lanes(self, e: Emitter, i: Index, first: int) -> SSAValue:
        """Codes packed along the lanes: each lane picks its word and shifts it."""
        codes: list[SSAValue] = []
        numbers = range(first, first + e.isa.lanes)
        for loaded, plane in zip(self.planes, planes_of(self.format.bits, self.order), strict=True):
            per_word, low = len(plane.codes), plane.codes[0][0].low
            words = e.shuffle(loaded.words(e, i), [n // per_word for n in numbers])
            shifts = e.dense(i32, [plane.codes[n % per_word][0].shift for n in numbers])
            bits = e.shift(e.emit(llvm.LShrOp(words, shifts)), -low)
            codes = [e.merge(c, bits, (1 << low) - 1) for c in codes] or [bits]
        return codes[0]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one code of a packed tile")


@dataclass(frozen=True, eq=False)
class Decoded(Tile):
    """The values of codes, exactly."""

    source: Unpacked

    def has_middle(self, number: float) -> bool:
        """Whether a number is half of how many codes there are, packed along the rows."""
        return not self.source.along_lanes and number == self.source.format.middle != 0

    def less_middle(self) -> Decoded:
        """The values of unsigned codes, less the middle: those of signed ones."""
        format = ELEMENTS[f"si{self.source.format.bits}"]
        return replace(self, source=replace(self.source, format=format, flipped=True))

    @property
    def granule(self) -> int:
        return self.source.granule

    @property
    def significant(self) -> int:
        return self.source.format.significant

    def row(self, e: Emitter, i: Index) -> Vectors:
        if self.in_pairs(e) and self.source.format.bits > e.isa.table_bits:
            return self.half_of_pairs(e, i + -(i.offset % 2), i.offset % 2)
        if self.source.along_lanes:
            return [decode(e, code, self.source.format) for code in self.source.row(e, i)]
        codes, start = self.source.codes(e, i, e.isa.table_bits)
        return [decode(e, code, self.source.format, start) for code in codes]

    def half_of_pairs(self, e: Emitter, i: Index, odd: int) -> Vectors:
        """Row i, even, or i + 1, in f32: by arithmetic if a table takes four registers or more."""
        format = self.source.format
        if not format.is_integer or format.bits <= e.isa.pair_table_bits + 1:
            return [half(e, pair, odd == 1) for pair in self.pair_words(e, i)]
        codes, start = self.pair_codes(e, i)
        return [decode_integer(e, pair, format, start + HALF * odd) for pair in codes]

    def in_pairs(self, e: Emitter) -> bool:
        """Whether pairs of rows are decoded at once, to bf16, which must hold their values."""
        format = self.source.format
        exact = format.significant <= SCALES["bf16"].significant
        return exact and not self.source.along_lanes and e.isa.decodes_pairs(format.bits)

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
            codes, start = self.pair_codes(e, i)
            return [tables.pairs(e, pairs, format, start) for pairs in codes]

        return e.once(("pairs", self, i.base, i.offset), make)

    def pair_codes(self, e: Emitter, i: Index) -> tuple[Vectors, int]:
        """Codes of rows i and i + 1, i even, in the halves of lanes, and the bit at which they
        begin there."""
        key = "pair codes", self, i.base, i.offset
        return e.once(key, lambda: self.source.codes(e, i, e.isa.pair_table_bits, 0x10001))

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one element of a packed tile")


def decode(e: Emitter, code: SSAValue, format: Element, start: int = 0) -> SSAValue:
    """f32 values of i32 codes from a bit on, other bits of which may be anything."""
    if format.bits <= e.isa.table_bits:
        return looked_up(e, code, format.values, start)
    if format.table:
        return selected(e, code, format.values, start)
    if format.is_integer:
        return decode_integer(e, code, format, start)
    if format.specials != "none":
        return e.decode_float(code, format)
    if format.bits == e.isa.table_bits + 1:
        magnitude = looked_up(e, code, format.values[: len(format.values) // 2], start)
    else:
        magnitude = decode_magnitude(e, code, format)
    sign = e.and_(e.shift(code, format.bits + start - WORD), 0x80000000)
    return e.bitcast(e.or_(e.bitcast(magnitude, e.vector(i32)), sign), e.vector(f32))


def looked_up(e: Emitter, code: SSAValue, values: Sequence[float], start: int) -> SSAValue:
    """Values from a table in one register, by bits of codes from one on."""
    table = e.dense(f32, tables.repeated(values, e.isa.lanes, start))
    assert e.isa.permute_f32
    return e.intrinsic(e.isa.permute_f32, [table, code], e.vector(f32))


def selected(e: Emitter, code: SSAValue, values: Sequence[float], start: int) -> SSAValue:
    """Values by bits of codes from one on, of more values than a register holds: each bit selects
    one half of them."""
    if len(values) == 1:
        return e.full(values[0])
    half = len(values) // 2
    if e.isa.permute_f32 and len(values) <= e.isa.lanes:
        return looked_up(e, code, values, start)
    bit = e.and_(code, half << start)
    is_set = e.compare("ne", bit, e.bits(0))
    upper, lower = (selected(e, code, part, start) for part in (values[half:], values[:half]))
    return e.select(is_set, upper, lower)


def decode_magnitude(e: Emitter, code: SSAValue, format: Element) -> SSAValue:
    """Magnitudes of codes of a float format without special values, in f32.

    With its exponent moved to f32's bias a normal number is right. A subnormal has become y, the
    half of least + itself, where `least` is the least normal number: it is 2y − least, which is
    not less than y for normal ones. Multiplying f32 subnormals instead, as `Emitter.from_fields`
    does for wider formats, which have few, is left to microcode by Intel's CPUs: to hundreds of
    instructions for a vector that has any (VTune's help, "Floating-point assists").
    """
    fields = e.and_(e.shift(code, format.mantissa - 23), magnitude_mask(format))
    moved = e.emit(llvm.AddOp(fields, e.bits(127 - format.bias << 23)))
    y, least = e.bitcast(moved, e.vector(f32)), math.ldexp(1.0, 1 - format.bias)
    twice = e.bitcast(e.fma(y, e.full(2.0), e.full(-least)), e.vector(i32))
    return e.bitcast(e.extreme("umin", moved, twice), e.vector(f32))


def decode_integer(e: Emitter, code: SSAValue, format: Element, start: int) -> SSAValue:
    if format.signed:
        top = WORD - format.bits
        moved = e.shift(code, start - top)
        clean = e.emit(llvm.AShrOp(moved, e.bits(top)))
    else:
        clean = e.and_(e.shift(code, start), (1 << format.bits) - 1)
    return e.emit(llvm.SIToFPOp(clean, e.vector(f32)))
