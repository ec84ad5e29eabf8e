"""Build the tile kernels of many rows: weights are decoded once for all rows of a block.

A program multiplies a block of rows of x by some panels of weights, one after another. It decodes
a panel into memory of its own, K in chunks that stay in a core's cache, and multiplies by it one
tile of rows after another. Their sums lie in memory too, so that registers hold those of one block
of the format alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from xdsl.dialects import arith, memref, scf
from xdsl.dialects.builtin import IndexType, VectorType, f32
from xdsl.ir import Attribute, Block, SSAValue

from gqc.dialects import tile
from gqc.passes.kernel_builder import building, cast, named
from gqc.passes.matmul_kernel import MatmulKernel, named_value
from gqc.targets import resolve

PANEL_BYTES = 128 << 10
"""What a decoded chunk of a panel may take, well within a core's second cache."""

DECODED_COLUMNS = 16
"""Columns of a panel that are decoded at once, those of a cache line of words: more of them make
longer code, which spills registers."""

SHARED_SUMS = 4
"""Panels that share the sums of x, where zero points ask for these."""

SUMS_BYTES = 256 << 10
"""What the sums of x may take of a thread's stack, where the rest lies as well."""


class PanelMatmulKernel(MatmulKernel):
    """Builds the kernel of one matmul for a schedule with a panel."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.dot_type = self.decoded_type()

    def decoded_type(self) -> Attribute:
        """Of what panels hold."""
        element, target = str(self.activation), resolve(self.target)
        exact = self.type.is_exact_in if self.scale_first else self.type.codes_are_exact_in
        rounds = not exact(element)
        return self.activation if target.dots(element) and not rounds else f32

    @property
    def program_tile(self) -> tuple[int, int]:
        return self.rows, self.panels * self.bn

    @property
    def rows(self) -> int:
        """Rows of x that one program multiplies: whole tiles, fewer where their sums are many."""
        most = SUMS_BYTES // (4 * self.steps) if self.sums_x else self.schedule.panel.data
        return max(1, min(most, self.schedule.panel.data) // self.bm) * self.bm

    @property
    def sums_x(self) -> bool:
        """Whether zero points are multiplied by sums of x."""
        return self.type.has_zero and not self.scale_first

    @property
    def panels(self) -> int:
        return SHARED_SUMS if self.sums_x else 1

    @property
    def steps(self) -> int:
        return -(-self.k // self.bk)

    @property
    def apart(self) -> int:
        """K that is summed up by itself, as in kernels of few rows; 0 if all of K is one sum."""
        part = self.summed(self.k)
        return part if part < self.k else 0

    @property
    def chunk(self) -> int:
        """K of one chunk: the most sums, or else steps, that fit a panel and divide K."""
        unit = self.apart or self.bk
        size = self.bn * unit * self.dot_type.size  # type: ignore[attr-defined]
        count = self.steps * self.bk // unit
        divisors = [n for n in range(1, count + 1) if count % n == 0]
        return unit * max((n for n in divisors if n * size <= PANEL_BYTES), default=1)

    # Body

    def body(self) -> None:
        self.first = self.offset(0, self.rows, "first")
        panel = self.offset(1, self.panels, "first_panel")
        size = memref.DimOp(self.args["x"], self.constant(0))
        rows_left = arith.SubiOp(named(size, "size"), self.first)
        self.end = named(arith.MinUIOp(rows_left, self.constant(self.rows)), "end")
        self.decoded = self.scratch("decoded", self.dot_type, self.chunk, self.bn)
        self.sums = self.scratch("sums", f32, self.rows, self.bn)
        if self.sums_x:
            self.x_sums = self.scratch("x_sums", f32, self.rows, self.steps)
            whole = self.constant(self.steps * self.bk)
            with self.rows_of_x(1) as row, self.loop("k", whole, self.bk) as k:
                self.store_x_sum(row, k)
        with self.loop("p", self.panels_from(panel), 1) as p:
            number = arith.AddiOp(panel, p).result
            self.column = named(arith.MuliOp(number, self.constant(self.bn)), "n")
            self.find_lane()
            self.multiply_panel()

    def panels_from(self, first: SSAValue) -> SSAValue:
        """How many panels this program has: fewer at the end, unless they come out even."""
        count = -(-self.n // self.bn)
        most = self.constant(self.panels)
        if count % self.panels == 0:
            return most
        left = arith.SubiOp(self.constant(count), first)
        return named(arith.MinUIOp(left, most), "panels")

    def multiply_panel(self) -> None:
        """Store the columns of y that a panel makes.

        Only dots take whole tiles of rows: single ones make short code of the rest. Rows of the
        last tile that x does not have start from what lies in memory; they are not stored.
        """
        with self.rows_of_x(1) as row:
            zero = tile.FullOp(0.0, VectorType(f32, (1, self.bn)))
            self.store_sums(row, zero.result)
        if self.block == self.k:
            self.load_block(self.constant(0))
        with self.loop("chunk", self.constant(self.steps * self.bk), self.chunk) as chunk:
            with self.loop("place", self.constant(self.chunk), self.bk) as place:
                self.decode(named(arith.AddiOp(chunk, place), "k"), place)
            with self.rows_of_x(self.bm) as row:
                self.multiply(row, chunk)
        with self.rows_of_x(1) as row:
            self.epilogue(self.load_sums(row, 1))

    def decode(self, k: SSAValue, place: SSAValue) -> None:
        """Decode a step of K to a place of the panel."""
        with self.some_columns() as column:
            codes = self.load_codes(k)
            if self.scale_first:
                self.load_block(k)
            tile.StoreOp(self.weight_tile(codes), self.decoded, [place, column])

    def multiply(self, row: SSAValue, chunk: SSAValue) -> None:
        """Add to the sums of a tile of rows what a chunk of K gives."""
        if self.scale_first and not self.apart:
            x = cast(self.load_rows("x", chunk, self.chunk), self.dot_type, "x_tile")
            weight = self.load_decoded(self.constant(0), self.chunk)
            self.store_sums(row, self.dot(self.load_sums(row, self.bm), x, weight))
            return
        with self.loop("place", self.constant(self.chunk), self.apart or self.bk) as place:
            if not self.apart:
                self.store_sums(
                    row, self.scaled(row, chunk, place, lambda: self.load_sums(row, self.bm))
                )
                return
            part = self.part_of(row, chunk, place)
            total = arith.AddfOp(self.load_sums(row, self.bm), part).result
            self.store_sums(row, total)

    def part_of(self, row: SSAValue, chunk: SSAValue, first: SSAValue) -> SSAValue:
        """What K that is summed up by itself gives, from a place of a chunk on."""
        if self.scale_first:
            return self.products(named(arith.AddiOp(chunk, first), "k"), first, self.apart)

        def step(k: SSAValue, acc: SSAValue) -> SSAValue:
            place = named(arith.AddiOp(first, k), "step_place")
            return self.scaled(row, chunk, place, lambda: acc)

        start = tile.FullOp(0.0, VectorType(f32, (self.bm, self.bn))).result
        return self.accumulate(self.apart, self.bk, start, step)

    def scaled(
        self, row: SSAValue, chunk: SSAValue, place: SSAValue, acc: Callable[[], SSAValue]
    ) -> SSAValue:
        """Sums of a tile of rows, and what a step of K gives, scaled after its dot."""
        k = named(arith.AddiOp(chunk, place), "k")
        part = self.products(k, place, self.bk)
        total = self.load_x_sum(row, k) if self.sums_x else None
        return self.scale_sum(acc(), part, total)

    def products(self, k: SSAValue, place: SSAValue, step: int) -> SSAValue:
        """The sum of products of some K, from one on, which lies at a place of the panel."""
        x = cast(self.load_rows("x", k, step), self.dot_type, "x_tile")
        if self.block != self.k and not self.scale_first:
            self.load_block(k)
        start = tile.FullOp(0.0, VectorType(f32, (self.bm, self.bn))).result
        return named_value(self.dot(start, x, self.load_decoded(place, step)), "part")

    # Memory of a program

    def scratch(self, name: str, element: Attribute, *shape: int) -> SSAValue:
        """Memory of one program."""
        return named(memref.AllocaOp.get(element, shape=shape), name)

    def load_decoded(self, place: SSAValue, rows: int) -> SSAValue:
        type_ = VectorType(self.dot_type, (rows, self.bn))
        return named(tile.LoadOp(self.decoded, [place, self.constant(0)], type_), "w_tile")

    def load_sums(self, row: SSAValue, rows: int) -> SSAValue:
        type_ = VectorType(f32, (rows, self.bn))
        return named(tile.LoadOp(self.sums, [row, self.constant(0)], type_), "acc")

    def store_sums(self, row: SSAValue, sums: SSAValue) -> None:
        tile.StoreOp(sums, self.sums, [row, self.constant(0)])

    def load_x_sum(self, row: SSAValue, k: SSAValue) -> SSAValue:
        type_ = VectorType(f32, (self.bm, 1))
        return named(tile.LoadOp(self.x_sums, [row, self.step_of(k)], type_), "x_sum")

    def store_x_sum(self, row: SSAValue, k: SSAValue) -> None:
        type_ = VectorType(tile.element_of(self.args["x"]), (1, self.bk))
        x = named(tile.LoadOp(self.args["x"], [self.m, k], type_), "x_tile")
        total = tile.SumOp(x, 1)
        tile.StoreOp(total.result, self.x_sums, [row, self.step_of(k)])

    def step_of(self, k: SSAValue) -> SSAValue:
        return named(arith.DivUIOp(k, self.constant(self.bk)), "step")

    # Loops

    @contextmanager
    def loop(self, name: str, end: SSAValue, step: int) -> Iterator[SSAValue]:
        """What is built inside runs for 0, step, … below `end`."""
        block = Block(arg_types=[IndexType()])
        block.args[0].name_hint = name
        with building(block):
            yield block.args[0]
            scf.YieldOp()
        scf.ForOp(self.constant(0), end, self.constant(step), [], block)

    @contextmanager
    def some_columns(self) -> Iterator[SSAValue]:
        """What is built inside runs for some columns of the panel at once, as for a tile of these;
        gives the first one's place."""
        columns, lane = self.bn, self.lane
        whole_zeros = (len(plane.codes) for _, plane in self.planes("zero"))  # of words
        some = math.gcd(columns, max((DECODED_COLUMNS, *whole_zeros)))
        with self.loop("column", self.constant(columns), some) as column:
            self.bn, self.lane = some, named(arith.AddiOp(lane, column), "lane")
            yield column
        self.bn, self.lane = columns, lane

    @contextmanager
    def rows_of_x(self, some: int) -> Iterator[SSAValue]:
        """What is built inside runs for so many rows of this program's at once, given the first."""
        with self.loop("row", self.end, some) as row:
            self.m = named(arith.AddiOp(self.first, row), "m")
            yield row
