"""The operation of the `tile` dialect that takes one of two operands whose columns alternate."""

from __future__ import annotations

from xdsl.dialects.builtin import IntegerAttr, VectorType, i64
from xdsl.ir import SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require
from gqc.dialects.tile_kernel import element_of, shape_of


@irdl_op_definition
class TakePanelsOp(IRDLOperation):
    """Every other panel of P columns of a tile [R, C], from the first (part 0) or second (1) on.

    C1 the tile has rank 2, and its columns are pairs of panels.
    C2 the result has the rows, half of the columns and the element type of the source.
    C3 the part is 0 or 1.
    """

    name = "tile.take_panels"

    source = operand_def(VectorType)
    panel = prop_def(IntegerAttr.constr(i64))
    part = prop_def(IntegerAttr.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$source `panel` `=` $panel `part` `=` $part attr-dict `:` type($source) `to` type($result)"
    )

    def __init__(self, source: SSAValue, panel: int, part: int):
        rows, columns = shape_of(source)
        super().__init__(
            operands=[source],
            properties={"panel": IntegerAttr(panel, i64), "part": IntegerAttr(part, i64)},
            result_types=[VectorType(element_of(source), (rows, columns // 2))],
        )

    def verify_(self) -> None:
        shape, panel = shape_of(self.source), self.panel.value.data
        whole = len(shape) == 2 and panel > 0 and shape[1] % (2 * panel) == 0
        require(whole, self, "C1", f"{shape} is not of pairs of panels of {panel} columns")
        half = VectorType(element_of(self.source), (shape[0], shape[1] // 2))
        require(self.result.type == half, self, "C2", f"the result must be {half}")
        require(self.part.value.data in (0, 1), self, "C3", "the part must be 0 or 1")
