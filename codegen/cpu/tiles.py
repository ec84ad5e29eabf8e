"""Tiles as families of vector registers.

The last axis of a tile lies along the lanes of vectors; the leading coordinate picks a row. Nothing
is computed when a tile op is met: a tile knows how to emit one row (`row`), one element in every
lane (`splat`), or two rows interleaved for a bf16 pair dot (`pair`, `pair_splat`), where and when
that is used. So packed words are unpacked right where the dot needs them, into registers.

Floats are handled as f32 lanes, which hold every narrower value exactly.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import VectorType, bf16, f32, i32
from xdsl.ir import Attribute, SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.errors import GqcError
from gqc.formats.elements import SCALES
from gqc.formats.packing import WORD, Plane

PREFETCH_BYTES = 4096
"""How far ahead packed words are asked for: a page, the reach of hardware prefetchers."""
CACHE_LINE = 64

Vectors = list[SSAValue]


@dataclass(frozen=True, eq=False)
class Tile(ABC):
    """A tile value of a shape; see the module's docstring."""

    shape: tuple[int, ...]
    element: Attribute

    @property
    def rows(self) -> int:
        return self.shape[0] if len(self.shape) > 1 else 1

    @property
    def columns(self) -> int:
        return self.shape[-1]

    @property
    def granule(self) -> int:
        """Rows are asked for as (a multiple of this) + (a constant)."""
        return 1

    @property
    def significant(self) -> int:
        """Significant bits of the values, at most."""
        return SCALES[str(self.element)].significant

    def vectors(self, e: Emitter) -> range:
        """First lanes of the vectors of a row."""
        if self.columns % e.isa.lanes:
            raise GqcError(
                f"a tile of {self.columns} columns does not fill vectors of {e.isa.lanes} lanes"
            )
        return range(0, self.columns, e.isa.lanes)

    @abstractmethod
    def row(self, e: Emitter, i: Index) -> Vectors:
        """Row i, as vectors along the lanes."""

    @abstractmethod
    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        """Element (i, j) in every lane."""

    def pair(self, e: Emitter, i: Index) -> Vectors:
        """Rows i and i + 1 of a bf16 tile: each 32-bit lane is a pair, row i in the low half."""
        rows = zip(self.row(e, i), self.row(e, i + 1), strict=True)
        return [interleave(e, a, b) for a, b in rows]

    def pair_splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        """Elements (i, j) and (i, j + 1) of a bf16 tile as a pair in every lane."""
        return interleave(e, self.splat(e, i, j), self.splat(e, i, j + 1))


def shifted(e: Emitter, words: Vectors, right: int) -> Vectors:
    """Words of a tile of codes, each shifted once."""
    return [e.once(("shift", word, right), lambda w=word: e.shift(w, right)) for word in words]


def as_pairs(e: Emitter, words: SSAValue) -> SSAValue:
    """32-bit lanes as twice as many bf16 lanes."""
    return e.bitcast(words, e.vector(bf16, 2 * e.isa.lanes))


def interleave(e: Emitter, even: SSAValue, odd: SSAValue) -> SSAValue:
    """Two f32 vectors of bf16 values as one vector of bf16 pairs."""
    low = e.shift(e.bitcast(even, e.vector(i32)), 16)
    return as_pairs(e, e.or_(low, e.and_(e.bitcast(odd, e.vector(i32)), 0xFFFF0000)))


def half(e: Emitter, pairs: SSAValue, odd: bool) -> SSAValue:
    """One bf16 of the pair in each 32-bit lane, as f32: its upper half."""
    bits = e.and_(pairs, 0xFFFF0000) if odd else e.shift(pairs, -16)
    return e.bitcast(bits, e.vector(f32))


@dataclass(frozen=True, eq=False)
class Full(Tile):
    """One value everywhere."""

    value: float

    def row(self, e: Emitter, i: Index) -> Vectors:
        return [self.splat(e, i, i) for _ in self.vectors(e)]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        value = int(self.value) if self.element == i32 else self.value
        return e.dense(self.element, [value] * e.isa.lanes)


@dataclass(frozen=True, eq=False)
class Registers(Tile):
    """Vectors already computed: what a loop carries, what a dot made."""

    values: Sequence[Vectors]

    def row(self, e: Emitter, i: Index) -> Vectors:
        assert i.base is None, "registers cannot be indexed at run time"
        return self.values[i.offset]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one element of a tile held in registers")


@dataclass(frozen=True, eq=False)
class Array:
    """A global array: row-major, contiguous; a dynamic first dimension is `size`."""

    pointer: SSAValue
    element: Attribute
    shape: tuple[int, ...]
    size: SSAValue

    def bound(self, e: Emitter, axis: int) -> SSAValue:
        return self.size if self.is_dynamic(axis) else e.integer(self.shape[axis])

    def is_dynamic(self, axis: int) -> bool:
        return self.shape[axis] < 0

    def holds(self, index: Index, extent: int, axis: int) -> bool:
        return not self.is_dynamic(axis) and index.fits(extent, self.shape[axis])

    def position(self, e: Emitter, indices: Sequence[Index]) -> Index:
        """Linear element position."""
        total = Index.constant(0)
        for axis, index in enumerate(indices):
            total = e.add(total, e.multiply(index, math.prod(self.shape[axis + 1 :])))
        return total

    def address(self, e: Emitter, indices: Sequence[Index]) -> SSAValue:
        return e.address(self.pointer, self.element, self.position(e, indices))

    @property
    def align(self) -> int:
        return self.element.size  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class Interleaved(Array):
    """Memory of a program in which as many rows as fill 32-bit lanes lie side by side, as dots want
    them: two of bf16, four of bytes.

    Its rows are a multiple of these, and read and written from such a one on.
    """

    @property
    def together(self) -> int:
        return WORD // (8 * self.align)

    def word_address(self, e: Emitter, row: Index, lane: Index) -> SSAValue:
        position = e.add(e.multiply(e.divide(row, self.together), self.shape[1]), lane)
        return e.address(self.pointer, i32, position)


@dataclass(frozen=True, eq=False)
class LoadedTogether(Tile):
    """A tile of `Interleaved`, of which only rows that lie side by side can be had."""

    array: Interleaved
    offsets: tuple[Index, ...]

    @property
    def granule(self) -> int:
        return self.array.together

    def pair(self, e: Emitter, i: Index) -> Vectors:
        row, column = e.add(self.offsets[0], i), self.offsets[1]
        addresses = [self.array.word_address(e, row, column + lane) for lane in self.vectors(e)]
        type_ = e.vector(bf16, 2 * e.isa.lanes)
        return [e.load(address, type_, CACHE_LINE) for address in addresses]

    def row(self, e: Emitter, i: Index) -> Vectors:
        raise GqcError("one row of a tile of interleaved rows")

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        raise GqcError("one element of a tile of interleaved rows")


@dataclass(frozen=True, eq=False)
class Loaded(Tile):
    """A tile of an array. Out of bounds reads 0, but for rows beyond a dynamic number of rows:
    those repeat the last row, for rows never mix and theirs are not stored."""

    array: Array
    offsets: tuple[Index, ...]

    def at(self, e: Emitter, i: Index) -> tuple[list[Index], SSAValue | None]:
        """Indices of row i's start, within bounds, and whether it was (None: certainly)."""
        if len(self.shape) == 1:
            return list(self.offsets), None
        *leading, first, column = self.offsets
        axis = len(leading)
        row = e.add(first, i)
        if self.array.holds(first, self.rows, axis):
            return [*leading, row, column], None
        row, inside = e.clamp(row, self.array.bound(e, axis))
        return [*leading, row, column], None if self.array.is_dynamic(axis) else inside

    def row(self, e: Emitter, i: Index) -> Vectors:
        indices, inside = self.at(e, i)
        return [self.vector(e, indices, lane, inside) for lane in self.vectors(e)]

    def vector(
        self, e: Emitter, indices: list[Index], lane: int, inside: SSAValue | None
    ) -> SSAValue:
        *leading, column = indices
        address = self.array.address(e, [*leading, column + lane])
        type_ = e.vector(self.element)
        if self.array.holds(self.offsets[-1], self.columns, len(self.array.shape) - 1):
            value = e.load(address, type_, self.array.align)
        else:
            value = e.masked_load(address, type_, self.array.align, self.mask(e, column + lane))
        if inside is not None:
            zero = e.once(("zero", type_), lambda: e.emit(llvm.ZeroOp(result_types=[type_])))
            value = e.select(inside, value, zero)
        return value if self.element == i32 else e.widen(value)

    def mask(self, e: Emitter, column: Index) -> SSAValue:
        bound = self.array.bound(e, len(self.array.shape) - 1)
        left = e.arithmetic(llvm.SubOp, bound, e.scalar(column))
        return e.once(("mask", left), lambda: e.lanes_below(left))

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        even = j + -(j.offset % 2)
        if self.element == bf16 and self.pairs_fit and even.multiple % 2 == 0:
            return half(e, self.pair_words(e, i, even), odd=j.offset % 2 == 1)
        value = e.splat(self.scalar(e, i, j, self.element))
        return value if self.element == i32 else e.widen(value)

    @property
    def pairs_fit(self) -> bool:
        """Whether two neighbours of a row, the first at an even column, can be read as one."""
        axis = len(self.array.shape) - 1
        return self.columns % 2 == 0 and self.array.holds(self.offsets[-1], self.columns, axis)

    def has_row_pairs(self, e: Emitter) -> bool:
        """Whether a row can be read as whole vectors of bf16 pairs along the lanes."""
        whole = self.pairs_fit and self.columns % (2 * e.isa.lanes) == 0
        return whole and self.element == bf16 and e.isa.dot_bf16 is not None

    def row_pairs(self, e: Emitter, i: Index) -> Vectors:
        """Row i, two elements in each 32-bit lane."""
        indices, _ = self.at(e, i)
        type_ = e.vector(bf16, 2 * e.isa.lanes)
        columns = [indices[-1] + lane for lane in range(0, self.columns, 2 * e.isa.lanes)]
        places = [self.array.address(e, [*indices[:-1], column]) for column in columns]
        return [e.load(place, type_, self.array.align) for place in places]

    def pair_words(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        """Elements (i, j) and (i, j + 1) of 16 bits, in every 32-bit lane."""
        key = (self, i.base, i.offset, j.base, j.offset)
        return e.once(key, lambda: e.splat(self.scalar(e, i, j, i32)))

    def pair_splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        if self.pairs_fit:
            return as_pairs(e, self.pair_words(e, i, j))
        return super().pair_splat(e, i, j)

    def quad_splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        """Bytes (i, j) to (i, j + 3) in every 32-bit lane."""
        key = ("quad", self, i.base, i.offset, j.base, j.offset)
        return e.once(key, lambda: e.splat(self.scalar(e, i, j, i32)))

    def scalar(self, e: Emitter, i: Index, j: Index, type_: Attribute) -> SSAValue:
        """What lies at (i, j), read as a vector of one."""
        indices, inside = self.at(e, i)
        type_ = e.vector(type_, 1)
        axis = len(self.array.shape) - 1
        column = e.add(indices[-1], j)
        if not self.array.holds(self.offsets[-1], self.columns, axis):
            column, within = e.clamp(column, self.array.bound(e, axis))
            inside = within if inside is None else e.emit(llvm.AndOp(inside, within))
        value = e.load(self.array.address(e, [*indices[:-1], column]), type_, self.array.align)
        if inside is None:
            return value
        zero = e.once(("zero", type_), lambda: e.emit(llvm.ZeroOp(result_types=[type_])))
        return e.select(inside, value, zero)

    def words(self, e: Emitter, i: Index) -> SSAValue:
        """Row i of words packed along the lanes, as one vector of its own width."""
        if not self.array.holds(self.offsets[-1], self.columns, len(self.array.shape) - 1):
            raise GqcError("a tile of packed zero points that reaches out of its array")
        indices, _ = self.at(e, i)
        address = self.array.address(e, indices)
        type_ = VectorType(i32, [self.columns])
        return e.once((address, type_), lambda: e.load(address, type_, self.array.align))

    def words_of(self, e: Emitter, i: Index, plane: Plane, number: int) -> Vectors:
        """A word of the group that holds row i of the codes packed here, loaded once."""
        word = e.multiply(e.divide(i, len(plane.codes)), plane.words) + number
        return e.once((self, word.base, word.offset), lambda: self.prefetched(e, word))

    def prefetched(self, e: Emitter, i: Index) -> Vectors:
        """Row i, and a later one asked for."""
        values = self.row(e, i)
        indices, _ = self.at(e, i)
        ahead = PREFETCH_BYTES // 4
        for lane in range(0, self.columns, CACHE_LINE // 4):
            e.prefetch(self.array.address(e, [*indices[:-1], indices[-1] + (lane + ahead)]))
        return values


@dataclass(frozen=True, eq=False)
class Converted(Tile):
    """A float tile in another float type: rounded to it, then held as f32 again."""

    source: Tile

    @property
    def granule(self) -> int:
        return self.source.granule

    @property
    def significant(self) -> int:
        return min(super().significant, self.source.significant)

    def convert(self, e: Emitter, value: SSAValue) -> SSAValue:
        is_exact = self.element == bf16 and self.source.significant <= super().significant
        return value if is_exact else e.round(value, self.element)

    def row(self, e: Emitter, i: Index) -> Vectors:
        return [self.convert(e, v) for v in self.source.row(e, i)]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.convert(e, self.source.splat(e, i, j))


@dataclass(frozen=True, eq=False)
class Elementwise(Tile):
    """A binary operation of f32 vectors on two tiles of one shape."""

    operation: Callable[[Emitter, SSAValue, SSAValue], SSAValue]
    a: Tile
    b: Tile

    @property
    def granule(self) -> int:
        return max(self.a.granule, self.b.granule)

    @property
    def significant(self) -> int:
        product = self.a.significant + self.b.significant
        most = super().significant
        return min(product, most) if self.operation is Emitter.fmul else most

    def apply(self, e: Emitter, x: SSAValue, y: SSAValue) -> SSAValue:
        return e.round(self.operation(e, x, y), self.element)

    def row(self, e: Emitter, i: Index) -> Vectors:
        pairs = zip(self.a.row(e, i), self.b.row(e, i), strict=True)
        return [self.apply(e, x, y) for x, y in pairs]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.apply(e, self.a.splat(e, i, j), self.b.splat(e, i, j))


@dataclass(frozen=True, eq=False)
class Broadcast(Tile):
    """A tile repeated along the axes where it has extent 1, or lacks the axis."""

    source: Tile

    @property
    def significant(self) -> int:
        return self.source.significant

    def leading(self, i: Index) -> Index:
        return i if self.source.rows > 1 else Index.constant(0)

    def row(self, e: Emitter, i: Index) -> Vectors:
        if self.source.columns == self.columns:
            row = self.leading(i)
            return e.once((self, row.base, row.offset), lambda: self.source.row(e, row))
        value = self.source.splat(e, self.leading(i), Index.constant(0))
        return [value for _ in self.vectors(e)]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        column = j if self.source.columns > 1 else Index.constant(0)
        return self.source.splat(e, self.leading(i), column)


@dataclass(frozen=True, eq=False)
class Repeated(Tile):
    """Each row `times` times in a row: a scale over its block."""

    source: Tile
    times: int

    @property
    def significant(self) -> int:
        return self.source.significant

    def row(self, e: Emitter, i: Index) -> Vectors:
        row = e.divide(i, self.times)
        return e.once((self, row.base, row.offset), lambda: self.source.row(e, row))

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.source.splat(e, e.divide(i, self.times), j)


@dataclass(frozen=True, eq=False)
class RepeatedColumns(Tile):
    """Each column `times` times in a row, whole vectors of it: a scale over its block."""

    source: Tile
    times: int

    def row(self, e: Emitter, i: Index) -> Vectors:
        if self.times % e.isa.lanes:
            raise GqcError(f"a column {self.times} times over, in vectors of {e.isa.lanes} lanes")
        columns = [Index.constant(first // self.times) for first in self.vectors(e)]
        return [self.source.splat(e, i, column) for column in columns]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.source.splat(e, i, e.divide(j, self.times))


@dataclass(frozen=True, eq=False)
class Transposed(Tile):
    """Rows and columns exchanged; only single elements of it can be had."""

    source: Tile

    def row(self, e: Emitter, i: Index) -> Vectors:
        raise GqcError("rows of a transposed tile on a CPU")

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.source.splat(e, j, i)


@dataclass(frozen=True, eq=False)
class Summed(Tile):
    """The sum of each row, as a tile of one column."""

    source: Tile

    def row(self, e: Emitter, i: Index) -> Vectors:
        raise GqcError("a tile of one column as vectors")

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return e.once((self, i.base, i.offset), lambda: self.total(e, i))

    def total(self, e: Emitter, i: Index) -> SSAValue:
        first = self.lane_totals(e, i)
        distance = e.isa.lanes // 2
        while distance:
            other = e.shuffle(first, [lane ^ distance for lane in range(e.isa.lanes)])
            first = self.together(e, first, other)
            distance //= 2
        return first

    def together(self, e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
        return e.fadd(a, b)

    def lane_totals(self, e: Emitter, i: Index) -> SSAValue:
        """A vector whose lanes sum up to the row's sum: by dots with ones where it is bf16."""
        if isinstance(self.source, Loaded) and self.source.has_row_pairs(e):
            assert e.isa.dot_bf16
            ones, total = as_pairs(e, e.bits(0x3F803F80)), e.full(0.0)
            for pairs in self.source.row_pairs(e, i):
                total = e.intrinsic(e.isa.dot_bf16, [total, pairs, ones], total.type)
            return total
        total, *rest = self.source.row(e, i)
        for vector in rest:
            total = self.together(e, total, vector)
        return total
