"""Operations of the `gq` dialect that hold what one kernel computes at once."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import TensorType
from xdsl.ir import Attribute, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.traits import IsolatedFromAbove, IsTerminator, Pure

from gqc.dialects.constraints import require


@irdl_op_definition
class FusedOp(IRDLOperation):
    """A tensor and torch's operations that compute it, which the kernel that reads it is to do.

    C1 there is an input, and the body has an argument of its type for each.
    C2 the body ends in `gq.yield` of the result's type.
    """

    name = "gq.fused"

    inputs = var_operand_def(TensorType)
    body = region_def("single_block")
    result = result_def(TensorType)
    traits = traits_def(Pure(), IsolatedFromAbove())
    assembly_format = "$inputs `:` type($inputs) `->` type($result) $body attr-dict"

    def __init__(self, inputs: Sequence[SSAValue], body: Region, result: Attribute):
        super().__init__(operands=[inputs], regions=[body], result_types=[result])

    @property
    def yielded(self) -> SSAValue:
        """What the body computes."""
        last = self.body.block.last_op
        assert isinstance(last, YieldOp)
        return last.value

    def verify_(self) -> None:
        types = [arg.type for arg in self.body.block.args]
        fits = len(types) > 0 and types == [value.type for value in self.inputs]
        require(fits, self, "C1", "the body's arguments must be those of the inputs")
        last = self.body.block.last_op
        fits = isinstance(last, YieldOp) and last.value.type == self.result.type
        require(fits, self, "C2", "the body must end in gq.yield of {}", self.result.type)


@irdl_op_definition
class YieldOp(IRDLOperation):
    """The end of a body: what it computes."""

    name = "gq.yield"

    value = operand_def(TensorType)
    traits = traits_def(IsTerminator())
    assembly_format = "$value attr-dict `:` type($value)"

    def __init__(self, value: SSAValue):
        super().__init__(operands=[value])
