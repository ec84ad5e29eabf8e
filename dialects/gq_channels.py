"""Operations of the `gq` dialect on channels: the elements of a tensor along one dimension.

On an activation they change what a linear layer reads, along K; on a weight, its rows or columns.
`fold-channels` moves those on activations into the weights before, and `fold-weights` computes
those on weights, once.
"""

from __future__ import annotations

from xdsl.dialects.builtin import (
    AnyFloat,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    TensorType,
    UnitAttr,
    f64,
    i64,
)
from xdsl.ir import SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require
from gqc.dialects.gq_attributes import BlockScaledType


def require_channels(op: ByVector, vector: SSAValue, source: SSAValue) -> None:
    """C1 to C3 of operations with one number for each channel."""
    assert isinstance(source.type, TensorType) and isinstance(vector.type, TensorType)
    shape = source.type.get_shape()
    require(0 <= op.axis < len(shape), op, "C1", "{} has no dimension {}", source.type, op.axis)
    fits = vector.type.get_shape() == (shape[op.axis],)
    message = "{} does not give one number for each channel of {}"
    require(fits, op, "C2", message, vector.type, source.type)
    require(source.type == op.result.type, op, "C3", "the type changes")


@irdl_op_definition
class ScaleChannelsOp(IRDLOperation):
    """Multiply channel k by factor[k]: y = x · factor; divide by it if `inverse`.

    With an `offset` o, x stands for x + o, as the weights of Gemma's norms do (o = 1), and so does
    y: y = (x + o) · factor - o. It is computed in the wider of the types of x and factor, and
    rounded to that of x once. `reason` says why it runs with the model.

    C1 the dimension exists.
    C2 the factor has an element for each channel.
    C3 source and result have one type.
    C4 source and factor hold floats.
    """

    name = "gq.scale_channels"

    source = operand_def(TensorType)
    factor = operand_def(TensorType)
    dim = prop_def(IntegerAttr.constr(i64))
    inverse = opt_prop_def(UnitAttr)
    offset = opt_prop_def(FloatAttr.constr(f64))
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$source `by` $factor `along` $dim (`inverse` $inverse^)? (`offset` $offset^)? attr-dict"
        " `:` type($source) `,` type($factor) `->` type($result)"
    )

    def __init__(
        self,
        source: SSAValue,
        factor: SSAValue,
        dim: int,
        inverse: bool = False,
        offset: float | None = None,
    ):
        super().__init__(
            operands=[source, factor],
            properties={
                "dim": IntegerAttr(dim, i64),
                "inverse": UnitAttr() if inverse else None,
                "offset": None if offset is None else FloatAttr(offset, f64),
            },
            result_types=[source.type],
        )

    @property
    def axis(self) -> int:
        """The dimension of the channels."""
        return self.dim.value.data

    def verify_(self) -> None:
        require_channels(self, self.factor, self.source)
        for value in (self.source, self.factor):
            assert isinstance(value.type, TensorType)
            is_float = isinstance(value.type.element_type, AnyFloat)
            require(is_float, self, "C4", "{} does not hold floats", value.type)


@irdl_op_definition
class GatherChannelsOp(IRDLOperation):
    """Take channels in another order: y[..., k] = x[..., order[k]], order a permutation.

    The rows of a block-scaled weight move with their scales and zero points. `reason` says why it
    runs with the model.

    C1 the dimension exists.
    C2 the order has an element for each channel.
    C3 source and result have one type.
    C4 the order holds i64.
    C5 a block does not extend along the dimension.
    """

    name = "gq.gather_channels"

    source = operand_def(TensorType)
    order = operand_def(TensorType)
    dim = prop_def(IntegerAttr.constr(i64))
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$source `by` $order `along` $dim attr-dict"
        " `:` type($source) `,` type($order) `->` type($result)"
    )

    def __init__(self, source: SSAValue, order: SSAValue, dim: int):
        super().__init__(
            operands=[source, order],
            properties={"dim": IntegerAttr(dim, i64)},
            result_types=[source.type],
        )

    @property
    def axis(self) -> int:
        """The dimension of the channels."""
        return self.dim.value.data

    def verify_(self) -> None:
        require_channels(self, self.order, self.source)
        assert isinstance(self.order.type, TensorType) and isinstance(self.source.type, TensorType)
        is_index = self.order.type.element_type == i64
        require(is_index, self, "C4", "the order is {}, not of i64", self.order.type)
        type_ = self.source.type.element_type
        if isinstance(type_, BlockScaledType):
            apart = type_.block_of(self.source.type.get_shape())[self.axis] == 1
            require(apart, self, "C5", "blocks of {} extend along {}", self.source.type, self.axis)


@irdl_op_definition
class RotateChannelsOp(IRDLOperation):
    """Rotate each `block` channels of the last dimension by a Hadamard matrix, its own inverse
    (`gqc.formats.rotation`). `reason` says why it runs with the model.

    C1 the block is a power of two and divides the last dimension.
    C2 source and result have one type.
    C3 the source holds floats.
    """

    name = "gq.rotate_channels"

    source = operand_def(TensorType)
    block = prop_def(IntegerAttr.constr(i64))
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = "$source `blocks` $block attr-dict `:` type($source) `->` type($result)"

    def __init__(self, source: SSAValue, block: int):
        super().__init__(
            operands=[source],
            properties={"block": IntegerAttr(block, i64)},
            result_types=[source.type],
        )

    def verify_(self) -> None:
        assert isinstance(self.source.type, TensorType)
        shape, block = self.source.type.get_shape(), self.block.value.data
        fits = block > 0 and block & (block - 1) == 0 and len(shape) > 0 and shape[-1] % block == 0
        require(fits, self, "C1", "{} has no blocks of {}", self.source.type, block)
        require(self.source.type == self.result.type, self, "C2", "the type changes")
        is_float = isinstance(self.source.type.element_type, AnyFloat)
        require(is_float, self, "C3", "{} does not hold floats", self.source.type)


ByVector = ScaleChannelsOp | GatherChannelsOp
"""Operations with a number for each channel."""
ChannelOp = ByVector | RotateChannelsOp


def reason_of(op: ChannelOp) -> str:
    """Why an operation was not folded; empty where nothing tried."""
    reason = op.attributes.get("reason")
    return reason.data if isinstance(reason, StringAttr) else ""
