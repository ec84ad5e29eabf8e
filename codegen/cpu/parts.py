"""Parts of K: programs leave what they have of a tile in memory, where it is added up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from xdsl.dialects.builtin import f32
from xdsl.ir import Operation, SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.dialects import tile
from gqc.dialects.tile import shape_of


@dataclass(frozen=True)
class Sums:
    """What the parts have of one tile, in memory f32 [tiles, parts, BM·BN].

    tile: its number, rows outermost. size: its elements, whole vectors.
    """

    pointer: SSAValue
    tile: Index
    parts: int
    size: int

    def addresses(self, e: Emitter, part: Index) -> list[SSAValue]:
        """Of the vectors of a part."""
        first = e.add(e.multiply(self.tile, self.parts * self.size), e.multiply(part, self.size))
        places = range(0, self.size, e.isa.lanes)
        return [e.address(self.pointer, f32, first + place) for place in places]

    def store(self, e: Emitter, part: Index, vectors: Sequence[SSAValue]) -> None:
        for vector, address in zip(vectors, self.addresses(e, part), strict=True):
            e.store(vector, address, vector_bytes(e))

    def load(self, e: Emitter, part: int) -> list[SSAValue]:
        addresses = self.addresses(e, Index.constant(part))
        return [e.load(address, e.vector(f32), vector_bytes(e)) for address in addresses]

    def total(self, e: Emitter) -> list[SSAValue]:
        """The sum of all parts, in order."""
        vectors = self.load(e, 0)
        for part in range(1, self.parts):
            vectors = [e.fadd(a, b) for a, b in zip(vectors, self.load(e, part), strict=True)]
        return vectors


def vector_bytes(e: Emitter) -> int:
    return 4 * e.isa.lanes


def sums_of(
    e: Emitter, total: tile.AddPartsOp, pointer: SSAValue, row: Index, column: Index, columns: int
) -> Sums:
    """Where a program's tile has its sums, in a grid of so many columns."""
    number = e.add(e.multiply(row, columns), column)
    return Sums(pointer, number, total.parts.value.data, prod(shape_of(total.source)))


def before(total: tile.AddPartsOp) -> list[Operation]:
    """What each part's program does."""
    assert total.parent is not None
    return [op for op in total.parent.ops if op.is_before_in_block(total)]


def after(total: tile.AddPartsOp) -> list[Operation]:
    """What is done once for a tile, and first what it needs of what the programs did."""
    assert total.parent is not None
    rest = [op for op in total.parent.ops if total.is_before_in_block(op)]
    wanted = {operand.owner for op in rest for inner in op.walk() for operand in inner.operands}
    needed: list[Operation] = []
    for op in reversed(before(total)):
        if op in wanted:
            needed.insert(0, op)
            wanted |= {operand.owner for inner in op.walk() for operand in inner.operands}
    return [*needed, *rest]
