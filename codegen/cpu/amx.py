"""Dots by AMX, of bf16 or bytes: x times interleaved rows, both in memory, in tiles of 16 rows of
64 bytes.

A block of 32 rows by 32 columns of the result takes all eight tiles: four sums, two of x and two of
the weight, whose rows lie side by side in lanes (`tiles.Interleaved`), as the instructions want
them. Tiles are configured where a program starts. The last rows of x may not fill a block: those
tiles have fewer rows then, so that nothing is read beyond x.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18; subnormals count
as zeros, as in `vdpbf16ps`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import i8, i32, i64
from xdsl.ir import SSAValue

from gqc.codegen.cpu import int8
from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.threads import stack
from gqc.codegen.cpu.tiles import CACHE_LINE, Array, Full, Loaded, LoadedTogether, Tile
from gqc.errors import GqcError

ROWS = LANES = 16
"""Of a tile: rows, and 32-bit lanes of one."""
SIDE = 2
"""Tiles along each side of a block."""
BLOCK = SIDE * ROWS

SUMS, X, WEIGHT = ((0, 1), (2, 3)), (4, 5), (6, 7)
"""Numbers of the tiles; the sums of x's first tile come first."""
UPPER, LOWER = (*SUMS[0], X[0]), (*SUMS[1], X[1])
"""Tiles whose rows are those of x's first and second tile."""


def multiplies(e: Emitter, acc: Tile, lhs: Tile, rhs: Tile) -> bool:
    """Whether tiles can multiply these: whole blocks, K in parts of tiles, x in memory."""
    if not isinstance(lhs, Loaded) or not isinstance(rhs, LoadedTogether):
        return False
    whole = acc.rows % BLOCK == 0 and acc.columns % BLOCK == 0 and lhs.columns % LANES == 0
    return whole and lhs.pairs_fit and instruction(e, lhs, rhs) is not None


def instruction(e: Emitter, lhs: Loaded, rhs: LoadedTogether) -> str | None:
    """The intrinsic that multiplies elements of x by those of the weight."""
    types = str(lhs.element), str(rhs.element)
    return {("bf16", "bf16"): e.isa.tile_dot_bf16, ("i8", "ui8"): e.isa.tile_dot_s8u8}.get(types)


def dot(e: Emitter, acc: Tile, lhs: Loaded, rhs: LoadedTogether) -> Tile:
    """acc + lhs · rhs, in memory; an i32 acc that is not there is added where the result is read.

    Raises GqcError at the second dot of a kernel: tiles are configured once.
    """
    if e.at_end:
        raise GqcError("a second dot in a kernel for AMX")
    depth = math.gcd(lhs.columns, rhs.array.together * LANES)
    with e.at_start():
        memory = stack(e, e.integer(math.prod(acc.shape)), acc.element, CACHE_LINE)
        widths = 4 * depth // rhs.array.together, depth // rhs.array.together
        configurations = Configurations.make(e, lhs.array.size, *widths)
        result = Array(memory, acc.element, acc.shape, e.integer(acc.rows))
    e.at_end.append(llvm.CallIntrinsicOp("llvm.x86.tilerelease", [], []))
    sums = Loaded(acc.shape, acc.element, result, (Index.constant(0),) * 2)
    for m in range(0, acc.rows, BLOCK):
        first = e.add(lhs.offsets[0], Index.constant(m))
        with configurations.of_rows(e, first):
            for n in range(0, acc.columns, BLOCK):
                Product(e, lhs, rhs, first, n, depth).run(acc, sums, m)
    if isinstance(acc, Loaded) or is_zero(acc):
        return sums
    assert acc.element == i32
    return int8.Combined(acc.shape, acc.element, llvm.AddOp, acc, sums)


def is_zero(tile: Tile) -> bool:
    return isinstance(tile, Full) and tile.value == 0


# Configuration


@dataclass(frozen=True)
class Configurations:
    """What tiles look like: those of whole blocks, and those of the last rows of x.

    size: the number of rows of x.
    """

    size: SSAValue
    whole: SSAValue
    last: SSAValue

    @staticmethod
    def make(e: Emitter, size: SSAValue, width: int, depth: int) -> Configurations:
        """Fill them in and load that of whole blocks. Tiles of x have rows of `width` bytes, those
        of weights `depth` rows."""
        sixteen = e.integer(ROWS)
        whole = configuration(e, width, depth, sixteen, sixteen)
        left = e.arithmetic(llvm.AndOp, size, e.integer(BLOCK - 1))
        upper = least(e, left, sixteen)
        # No tile may be empty: the second reads one row where it has none.
        lower = e.arithmetic(llvm.SubOp, greatest(e, left, e.integer(ROWS + 1)), sixteen)
        last = configuration(e, width, depth, upper, lower)
        call(e, "ldtilecfg", whole)
        return Configurations(size, whole, last)

    def of_rows(self, e: Emitter, first: Index) -> Tail:
        """The one for a block of rows of x, for what is emitted inside."""
        left = e.arithmetic(llvm.SubOp, self.size, e.scalar(first))
        return Tail(e, self, e.compare("ult", left, e.integer(BLOCK)))


@dataclass(frozen=True)
class Tail:
    """A context in which tiles have fewer rows, if a condition holds."""

    e: Emitter
    configurations: Configurations
    condition: SSAValue

    def __enter__(self) -> None:
        self.load(self.configurations.last)

    def __exit__(self, *_: object) -> None:
        self.load(self.configurations.whole)

    def load(self, configuration: SSAValue) -> None:
        with self.e.when(self.condition):
            call(self.e, "ldtilecfg", configuration)


def configuration(e: Emitter, width: int, depth: int, upper: SSAValue, lower: SSAValue) -> SSAValue:
    """64 bytes: palette 1; from byte 16 on the bytes of each tile's rows, from 48 on their rows."""
    widths = [width if tile in X else 4 * LANES for tile in range(8)]
    words: dict[int, SSAValue] = dict.fromkeys(range(8), e.integer(0))
    words[0] = e.integer(1)
    for half in (0, 1):
        fields = enumerate(widths[4 * half : 4 * half + 4])
        words[2 + half] = e.integer(sum(field << 16 * n for n, field in fields))
    rows = e.integer(sum(depth << 8 * tile for tile in WEIGHT))
    for tiles, count in ((UPPER, upper), (LOWER, lower)):
        ones = e.integer(sum(1 << 8 * tile for tile in tiles))
        rows = e.arithmetic(llvm.AddOp, rows, e.arithmetic(llvm.MulOp, ones, count))
    words[6] = rows
    place = stack(e, e.integer(len(words)), i64, CACHE_LINE)
    for n, word in words.items():
        e.store(word, e.address(place, i64, Index.constant(n)), 8)
    return place


def least(e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
    return e.select(e.compare("ult", a, b), a, b)


def greatest(e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
    return e.select(e.compare("ult", a, b), b, a)


# Products


@dataclass(frozen=True)
class Product:
    """A block of the result: rows of x from `first` on, columns of the weight from `n` on."""

    e: Emitter
    lhs: Loaded
    rhs: LoadedTogether
    first: Index
    n: int
    depth: int

    def run(self, acc: Tile, sums: Loaded, m: int) -> None:
        e, extent = self.e, self.lhs.columns
        self.start(acc, m)
        if extent == self.depth:
            self.step(Index.constant(0))
        else:

            def body(k: SSAValue, _: object) -> list[SSAValue]:
                self.step(Index(k, 0, 0, extent - self.depth, self.depth))
                return []

            e.loop(e.integer(0), e.integer(extent), self.depth, [], body)
        self.each_sum("tilestored64", sums, m)

    @property
    def product(self) -> str:
        name = instruction(self.e, self.lhs, self.rhs)
        assert name is not None
        return name

    def start(self, acc: Tile, m: int) -> None:
        """Sums from what is in memory, or from zero."""
        if isinstance(acc, Loaded):
            self.each_sum("tileloadd64", acc, m)
            return
        for tile in (*SUMS[0], *SUMS[1]):
            call(self.e, "tilezero", number(self.e, tile))

    def each_sum(self, name: str, sums: Loaded, m: int) -> None:
        """Load or store the tiles of sums."""
        row, column = sums.offsets
        for i, tiles in enumerate(SUMS):
            for j, tile in enumerate(tiles):
                place = row + (m + ROWS * i), column + (self.n + LANES * j)
                move(self.e, name, tile, sums.array, sums.array.address(self.e, place))

    def step(self, k: Index) -> None:
        """The products of `depth` elements of K."""
        e = self.e
        self.load_x(k)
        row, column = self.rhs.offsets
        for j, tile in enumerate(WEIGHT):
            place = self.rhs.array.word_address(e, e.add(row, k), column + (self.n + LANES * j))
            call(e, "tileloadd64", number(e, tile), place, e.integer(4 * self.rhs.array.shape[1]))
        for i, x in enumerate(X):
            for j, weight in enumerate(WEIGHT):
                operands = [number(e, tile) for tile in (SUMS[i][j], x, weight)]
                e.effect(llvm.CallIntrinsicOp(self.product, operands, []))

    def load_x(self, k: Index) -> None:
        """Tiles of x; the second begins at the last row where it has none."""
        e, array = self.e, self.lhs.array
        second, _ = e.clamp(self.first + ROWS, array.size)
        for tile, row in zip(X, (self.first, second), strict=True):
            place = array.address(e, [row, e.add(self.lhs.offsets[1], k)])
            move(e, "tileloadd64", tile, array, place)


def move(e: Emitter, name: str, tile: int, array: Array, place: SSAValue) -> None:
    """Load or store a tile of a row-major array."""
    stride = array.shape[-1] * array.align
    call(e, name, number(e, tile), place, e.integer(stride))


def number(e: Emitter, tile: int) -> SSAValue:
    return e.integer(tile, i8)


def call(e: Emitter, name: str, *args: SSAValue) -> None:
    e.effect(llvm.CallIntrinsicOp(f"llvm.x86.{name}", list(args), []))
