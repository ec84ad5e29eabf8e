"""Every other panel of a tile's columns, as vectors of their own."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.ir import SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import Tile, Vectors
from gqc.errors import GqcError


@dataclass(frozen=True, eq=False)
class Panels(Tile):
    """Panels `part`, `part` + 2, … of a tile, each whole vectors."""

    source: Tile
    panel: int
    part: int

    @property
    def granule(self) -> int:
        return self.source.granule

    def row(self, e: Emitter, i: Index) -> Vectors:
        lanes = e.isa.lanes
        if self.panel % lanes:
            raise GqcError(f"panels of {self.panel} columns, in vectors of {lanes} lanes")
        vectors = self.source.row(e, i)
        return [vectors[self.column_of(lane) // lanes] for lane in self.vectors(e)]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        assert j.base is None, "columns of panels cannot be indexed at run time"
        return self.source.splat(e, i, Index.constant(self.column_of(j.offset)))

    def column_of(self, column: int) -> int:
        """The source's column of one of this tile."""
        number, place = divmod(column, self.panel)
        return (2 * number + self.part) * self.panel + place
