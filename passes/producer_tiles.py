"""The tiles of a `gq.fused` body: what a kernel computes of an activation before it reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from xdsl.dialects import arith, scf
from xdsl.dialects.builtin import IndexType, VectorType, f32
from xdsl.ir import Attribute, Block, SSAValue

from gqc.dialects import gq, tile
from gqc.dialects.fx import CallOp
from gqc.passes.kernel_builder import KernelBuilder, building, cast, named
from gqc.passes.producers import MEAN, tile_of


@dataclass
class ProducerTiles:
    """Tiles of a body's values, in float32: [R, C] of activations, [C] of vectors, [R, 1] of what
    is one for a row.

    `arrays` are the kernel's, in the order of the body's arguments; `row` is where the program's
    R rows begin. A mean takes a loop over the row, `step` columns at a time, before the rest.
    """

    kernel: KernelBuilder
    fused: gq.FusedOp
    arrays: Sequence[SSAValue]
    row: SSAValue
    rows: int
    step: int
    of_rows: dict[SSAValue, SSAValue] = field(default_factory=dict)

    def compute_rows(self, extent: int) -> None:
        """Compute what there is one of for a row of `extent` elements; means by loops."""
        for op in self.fused.body.block.ops:
            if isinstance(op, CallOp) and gq.tensor_shape(op.results[0])[-1] == 1 < extent:
                is_mean, (value,) = op.callee.data == MEAN, op.results
                at_start = self.at(self.kernel.constant(0), 1)
                self.of_rows[value] = self.mean(op, extent) if is_mean else at_start.call(value)

    def mean(self, op: CallOp, extent: int) -> SSAValue:
        start = named(tile.FullOp(0.0, VectorType(f32, (self.rows, self.step))), "sums")
        loop = Block(arg_types=[IndexType(), start.type])
        k, sums = loop.args
        k.name_hint, sums.name_hint = "k", "sums"
        with building(loop):
            terms = self.at(k, self.step).tile(op.operands[0])
            scf.YieldOp(named(arith.AddfOp(sums, terms), "sums"))
        zero, end, step = (self.kernel.constant(n) for n in (0, extent, self.step))
        sums = named(scf.ForOp(zero, end, step, [start], loop), "sums")
        total = tile.SumOp(sums, 1).result
        count = tile.FullOp(float(extent), VectorType(f32, tile.shape_of(total))).result
        return rounded(named(arith.DivfOp(total, count), "mean"), gq.element_type(op.results[0]))

    def at(self, k: SSAValue, columns: int) -> Columns:
        """The tiles of some columns, from k on."""
        return Columns(self, k, columns)


@dataclass
class Columns:
    """Tiles of one step of a loop, each emitted where it is first asked for."""

    producer: ProducerTiles
    k: SSAValue
    columns: int
    known: dict[SSAValue, SSAValue] = field(default_factory=dict)

    def result(self) -> SSAValue:
        """What the body yields, [R, C]."""
        return self.tile(self.producer.fused.yielded)

    def tile(self, value: SSAValue) -> SSAValue:
        if value in self.producer.of_rows:
            return self.producer.of_rows[value]
        if value not in self.known:
            compute = self.call if isinstance(value.owner, CallOp) else self.load
            self.known[value] = compute(value)
        return self.known[value]

    def load(self, value: SSAValue) -> SSAValue:
        producer = self.producer
        array = producer.arrays[producer.fused.body.block.args.index(value)]
        vector = len(tile.shape_of(array)) == 1
        offsets = [self.k] if vector else [producer.row, self.k]
        shape = (self.columns,) if vector else (producer.rows, self.columns)
        load = tile.LoadOp(array, offsets, VectorType(tile.element_of(array), shape))
        return cast(named(load, f"{array.name_hint}_tile"), f32, f"{array.name_hint}_tile")

    def call(self, value: SSAValue) -> SSAValue:
        op = value.owner
        assert isinstance(op, CallOp)
        tiles = [self.tile(operand) for operand in op.operands]
        result = tile_of(op, tiles, self.common_shape(tiles))
        return rounded(result, gq.element_type(value))

    def common_shape(self, tiles: Sequence[SSAValue]) -> tuple[int, ...]:
        """The shape that tiles broadcast to: [R, C] unless all are of one smaller shape."""
        shapes = {tile.shape_of(each) for each in tiles}
        return shapes.pop() if len(shapes) == 1 else (self.producer.rows, self.columns)


def rounded(value: SSAValue, element: Attribute) -> SSAValue:
    """A float32 tile rounded to an element type, in float32 again."""
    name = value.name_hint or "value"
    return cast(cast(value, element, name), f32, name)
