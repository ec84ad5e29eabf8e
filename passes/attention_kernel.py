"""Build the tile kernel of attention for few rows: those that a language model decodes.

Scores of a row lie in memory of the program; softmax and the sum of values go over them after.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from xdsl.dialects import arith, math, memref, scf
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    IndexType,
    MemRefType,
    StringAttr,
    VectorType,
    f32,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.dialects import tile
from gqc.passes.kernel_builder import KernelBuilder, building, cast, named

STEP = 16
"""Positions that are attended to at a time; caches have room for a multiple of it."""

LOWEST = -3e38
"""Below any score."""
LEAST = -86.0
"""Scores farther below the greatest count as this far: their weights, of at most 2^-124, are normal
numbers, by which CPUs multiply ten times as fast as by subnormal ones."""


@dataclass(frozen=True)
class Heads:
    """Attention of `queries` heads of a size to `shared` heads of keys and values, in order, for
    `room` positions, a multiple of `STEP`, all of one element type; scores times `scale`."""

    queries: int
    shared: int
    size: int
    room: int
    element: Attribute
    scale: float


def build_attention(name: str, target: str, heads: Heads) -> tile.KernelOp:
    """The kernel of softmax(scale · q · Kᵀ) · V (Vaswani et al. 2017, section 3.2.1), in f32.

    Arguments of the kernel: q [M, H·D]; `count` i64 [1], positions that the first row attends to,
    one more with each row after; `keys` and `values` [H/G, L, D]; y [M, H·D]. Keys and values
    beyond those positions are read, and have no weight; they are numbers.
    """
    return AttentionKernel(name, target, heads).build()


@dataclass
class AttentionKernel(KernelBuilder):
    """Builds one kernel; a program makes one head of one row."""

    name: str
    target: str
    heads: Heads

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        h = self.heads
        rows = MemRefType(h.element, (DYNAMIC_INDEX, h.queries * h.size))
        cache = MemRefType(h.element, (h.shared, h.room, h.size))
        count = MemRefType(i64, (1,))
        return {"q": rows, "count": count, "keys": cache, "values": cache, "y": rows}

    def build(self) -> tile.KernelOp:
        self.fill()
        attributes: dict[str, Attribute] = {
            "summary": StringAttr("y = softmax(scale · q @ keys.T) @ values, head by head"),
            "target": StringAttr(self.target),
        }
        return tile.KernelOp(self.name, (1, self.heads.size), Region(self.entry), attributes)

    def body(self) -> None:
        h, zero = self.heads, self.constant(0)
        self.row = named(tile.ProgramIdOp(0), "row")
        head = named(tile.ProgramIdOp(1), "head")
        self.column = named(arith.MuliOp(head, self.constant(h.size)), "column")
        self.shared = self.units(head, h.queries // h.shared, "shared_head")
        first = memref.LoadOp.get(self.args["count"], [zero]).res
        first = named(arith.IndexCastOp(first, IndexType()), "first_count")
        count = arith.AddiOp(first, self.row).result
        self.count = named(arith.MinUIOp(count, self.constant(h.room)), "count")
        scores = memref.AllocaOp.get(f32, shape=(1, h.room + STEP))
        self.scores = named(scores, "scores")
        self.store_scores()
        self.exponentiate(self.greatest())
        total, acc = self.weighted_sum()
        y = arith.DivfOp(acc, tile.BroadcastOp(total, (1, h.size)).result)
        y = cast(named(y, "y_tile"), h.element, "y_tile")
        tile.StoreOp(y, self.args["y"], [self.row, self.column])

    def store_scores(self) -> None:
        """Scores of all positions, and the lowest for the rest of the last step."""
        h = self.heads
        type_ = VectorType(h.element, (1, h.size))
        q = named(tile.LoadOp(self.args["q"], [self.row, self.column], type_), "q_tile")
        scale, none = self.full(h.scale), self.full(0.0)
        with self.positions() as (place, _):
            keys = tile.TransposeOp(self.load_cache("keys", place)).result
            scores = named(tile.DotOp(none, q, keys), "score")
            self.store(arith.MulfOp(scores, scale).result, place)
            scf.YieldOp()
        self.store(self.full(LOWEST), self.count)

    def greatest(self) -> SSAValue:
        """The greatest score, for each one of a step."""
        with self.positions(self.full(LOWEST)) as (place, (most,)):
            scf.YieldOp(named(arith.MaximumfOp(most, self.load(place)), "most"))
        most = named(tile.MaxOp(self.last.results[0], 1), "greatest")
        return tile.BroadcastOp(most, (1, STEP)).result

    def exponentiate(self, greatest: SSAValue) -> None:
        """Replace scores by weights: e to what they are above the greatest."""
        least = self.full(LEAST)
        with self.positions() as (place, _):
            above = arith.SubfOp(self.load(place), greatest).result
            above = named(arith.MaximumfOp(above, least), "above")
            self.store(named(math.ExpOp(above), "weight"), place)
            scf.YieldOp()

    def weighted_sum(self) -> tuple[SSAValue, SSAValue]:
        """The sum of weights, and that of values, each times its weight."""
        start = tile.FullOp(0.0, VectorType(f32, (1, self.heads.size))).result
        with self.positions(self.full(0.0), start) as (place, (sums, acc)):
            weights = self.load(place)
            values = cast(self.load_cache("values", place), f32, "values_tile")
            sums = named(arith.AddfOp(sums, weights), "sums")
            scf.YieldOp(sums, named(tile.DotOp(acc, weights, values), "acc"))
        sums, acc = self.last.results
        return named(tile.SumOp(sums, 1), "total"), acc

    # Pieces

    def full(self, value: float) -> SSAValue:
        return tile.FullOp(value, VectorType(f32, (1, STEP))).result

    def load(self, place: SSAValue) -> SSAValue:
        type_ = VectorType(f32, (1, STEP))
        return named(tile.LoadOp(self.scores, [self.constant(0), place], type_), "part")

    def store(self, value: SSAValue, place: SSAValue) -> None:
        tile.StoreOp(value, self.scores, [self.constant(0), place])

    def load_cache(self, name: str, place: SSAValue) -> SSAValue:
        type_ = VectorType(self.heads.element, (STEP, self.heads.size))
        offsets = [self.shared, place, self.constant(0)]
        return named(tile.LoadOp(self.args[name], offsets, type_), f"{name}_tile")

    @contextmanager
    def positions(self, *start: SSAValue) -> Iterator[tuple[SSAValue, tuple[SSAValue, ...]]]:
        """What is built inside runs for each step of positions, and carries values on: it gives the
        place and the values, and the loop becomes `last`."""
        block = Block(arg_types=[IndexType(), *(value.type for value in start)])
        place, *carried = block.args
        place.name_hint = "place"
        with building(block):
            yield place, tuple(carried)
        step = self.constant(STEP)
        self.last = scf.ForOp(self.constant(0), self.count, step, list(start), block)
