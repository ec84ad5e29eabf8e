"""Sizes of dynamic dimensions: whether two are one number, as far as the IR tells."""

from __future__ import annotations

from xdsl.dialects.builtin import DYNAMIC_INDEX, ArrayAttr, IntegerAttr, TensorType
from xdsl.ir import SSAValue

from gqc.dialects import gq
from gqc.dialects.fx import CallOp, OperandAttr
from gqc.passes.recognize_linears import constants

Extent = int | SSAValue | tuple[SSAValue, int]
"""A number; a value that is a size; or the size of a tensor along a dimension."""

RESHAPES = ("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")


def same_extents(a: SSAValue, b: SSAValue) -> bool:
    """Whether two tensors of as many elements have the same sizes: all known but one, which
    follows."""
    if len(gq.tensor_shape(a)) != len(gq.tensor_shape(b)):
        return False
    axes = range(len(gq.tensor_shape(a)))
    return sum(extent(a, axis) != extent(b, axis) for axis in axes) <= 1


def extent(value: SSAValue, axis: int) -> Extent:
    """The size of a tensor along a dimension, from as far back as it is known to be the same."""
    if (size := gq.tensor_shape(value)[axis]) != DYNAMIC_INDEX:
        return size
    op = value.owner
    if isinstance(op, gq.MatmulTOp):
        return extent(op.x, axis)
    if not isinstance(op, CallOp):
        return value, axis
    if op.callee.data in RESHAPES:
        return given(op, axis) or (value, axis)
    if op.callee.data == "aten.transpose.int":
        rank = len(gq.tensor_shape(value))
        a, b = (n % rank for n in constants(op.args)[-2:])
        return extent(op.operands[0], {a: b, b: a}.get(axis, axis))
    if op.callee.data in KEEP_SIZES:
        rank = len(gq.tensor_shape(value))
        for operand in op.operands:
            shape = gq.tensor_shape(operand) if isinstance(operand.type, TensorType) else ()
            if len(shape) == rank and shape[axis] == DYNAMIC_INDEX:
                return extent(operand, axis)
    return value, axis


def given(op: CallOp, axis: int) -> Extent | None:
    """The size that a reshape is told, if it is a value."""
    sizes = op.args.data[1]
    attr = sizes.data[axis] if isinstance(sizes, ArrayAttr) else None
    if not isinstance(attr, OperandAttr):
        return None
    value = op.operands[attr.index.data]
    source = value.owner
    if isinstance(source, CallOp) and source.callee.data == "aten.sym_size.int":
        dim = source.args.data[1]
        assert isinstance(dim, IntegerAttr)
        return extent(source.operands[0], dim.value.data)
    return value


KEEP_SIZES = (
    "aten.scaled_dot_product_attention.default",  # of its queries, which are the first operand
    "aten.add.Tensor",
    "aten.mul.Tensor",
    "aten._to_copy.default",
    "aten.clone.default",
)
"""Callees whose result has the sizes of its operands. A dynamic size is never one (torch.export
takes one for a constant), so what is broadcast is static."""
