"""Torch's functions that a kernel computes itself, on tiles, where it reads what they make.

A function is elementwise, or a mean along the rows, and done in float32. Before a quantizer each is
rounded to the element type of its result, as torch does, so fusing it moves no rounding; after a
matmul only the last one is (`epilogue_tiles`).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from math import pi
from typing import Any

from xdsl.dialects import arith, math
from xdsl.dialects.builtin import (
    AnyFloat,
    FloatAttr,
    IntegerAttr,
    StringAttr,
    TensorType,
    VectorType,
    bf16,
    f16,
    f32,
)
from xdsl.ir import Attribute, Block, Operation, SSAValue

from gqc.dialects import gq, tile
from gqc.dialects.fx import CallOp, OperandAttr, call

FLOATS: tuple[AnyFloat, ...] = (f32, bf16, f16)
"""Elements of the arrays that kernels read and write."""

Function = Callable[..., SSAValue]
"""A tile in float32 from tiles in float32 of one shape, and numbers."""


def full_like(value: SSAValue, number: float) -> SSAValue:
    return tile.FullOp(number, VectorType(f32, tile.shape_of(value))).result


def binary(op: Callable[[SSAValue, SSAValue], Operation]) -> Function:
    """A function of two, one of which may be a number."""

    def function(a: SSAValue | float, b: SSAValue | float) -> SSAValue:
        if not isinstance(a, SSAValue):
            assert isinstance(b, SSAValue)
            a = full_like(b, a)
        return op(a, b if isinstance(b, SSAValue) else full_like(a, b)).results[0]

    return function


def over_one_plus_exp(a: SSAValue, x: SSAValue) -> SSAValue:
    """a / (1 + exp(-x))."""
    power = math.ExpOp(arith.SubfOp(full_like(x, 0.0), x).result).result
    return arith.DivfOp(a, arith.AddfOp(full_like(x, 1.0), power).result).result


def power(x: SSAValue, exponent: SSAValue | float) -> SSAValue:
    """x² or x³."""
    square = arith.MulfOp(x, x).result
    return square if exponent == 2 else arith.MulfOp(square, x).result


def scaled(x: SSAValue, factor: float) -> SSAValue:
    return arith.MulfOp(x, full_like(x, factor)).result


def gelu(x: SSAValue) -> SSAValue:
    """x/2 · (1 + erf(x / √2))."""
    wide = arith.AddfOp(full_like(x, 1.0), math.ErfOp(scaled(x, 2**-0.5)).result).result
    return arith.MulfOp(scaled(x, 0.5), wide).result


def gelu_tanh(x: SSAValue) -> SSAValue:
    """x/2 · (1 + tanh(√(2/π)(x + 0.044715 x³))), for which (1 + tanh u)/2 is 1 / (1 + exp(−2u))."""
    inner = arith.AddfOp(x, scaled(power(x, 3), 0.044715)).result
    return over_one_plus_exp(x, scaled(inner, (8 / pi) ** 0.5))


COPIES = ("aten._to_copy.default", "aten.clone.default")
"""Functions that change no more than the element type. (Without training, dropout is a clone.)"""

ELEMENTWISE: dict[str, Function] = {
    **dict.fromkeys(COPIES, lambda x: x),
    "aten.type_as.default": lambda x, other: x,
    "aten.add.Tensor": binary(arith.AddfOp),
    "aten.sub.Tensor": binary(arith.SubfOp),
    "aten.mul.Tensor": binary(arith.MulfOp),
    "aten.div.Tensor": binary(arith.DivfOp),
    "aten.pow.Tensor_Scalar": power,
    "aten.rsqrt.default": lambda x: math.RsqrtOp(x).result,
    "aten.sigmoid.default": lambda x: over_one_plus_exp(full_like(x, 1.0), x),
    "aten.silu.default": lambda x: over_one_plus_exp(x, x),
    "aten.relu.default": lambda x: arith.MaximumfOp(x, full_like(x, 0.0)).result,
    "aten.tanh.default": lambda x: math.TanhOp(x).result,
    "aten.gelu.default": gelu,
    "aten.gelu.default tanh": gelu_tanh,
}
"""Functions of tiles, by callee, and by the approximation that it is told."""

OPTIONS = {"aten._to_copy.default": "dtype", "aten.gelu.default": "approximate"}
"""Options that callees may have."""

MEAN = "aten.mean.dim"

ZERO_AT_ZERO = (
    *(*COPIES, "aten.pow.Tensor_Scalar", "aten.silu.default", "aten.relu.default"),
    *("aten.tanh.default", "aten.gelu.default"),
)
"""Functions of one tensor that are 0 where it is."""

SUMS = ("aten.add.Tensor", "aten.sub.Tensor")


def numbers(attr: Attribute) -> list[float]:
    """The numbers of an argument, in order."""
    if isinstance(attr, IntegerAttr | FloatAttr):
        return [attr.value.data]
    return [n for item in getattr(attr, "data", ()) for n in numbers(item)]


def can_produce(op: CallOp) -> bool:
    """Whether a call is of a function of the table, on floats, in a form that it stands for."""
    callee = op.callee.data
    options = set(op.kwargs.data) - {OPTIONS.get(callee)}
    if options or len(op.results) != 1 or not all(map(holds_floats, (*op.operands, *op.results))):
        return False
    if callee == MEAN:
        rank = len(gq.tensor_shape(op.operands[0]))
        axis, keep = numbers(op.args) if len(op.args.data) == 3 else (None, 0)
        return axis in (-1, rank - 1) and bool(keep)
    if callee == "aten.pow.Tensor_Scalar":
        return numbers(op.args) in ([2], [3])
    flat = all(isinstance(a, OperandAttr | IntegerAttr | FloatAttr) for a in op.args.data)
    return function_name(op) in ELEMENTWISE and flat


def function_name(op: CallOp) -> str:
    """Name of a call's function in the table."""
    told = op.kwargs.data.get("approximate")
    exact = told is None or told == StringAttr("none")
    return op.callee.data if exact else f"{op.callee.data} {told.data}"  # pyright: ignore


def tile_of(op: CallOp, tiles: Sequence[SSAValue], shape: tuple[int, ...]) -> SSAValue:
    """The tile of a call, float32, from those of its operands, broadcast to a shape."""
    arguments = [argument(attr, tiles, shape) for attr in op.args.data]
    result = ELEMENTWISE[function_name(op)](*arguments)
    if result not in tiles:
        result.name_hint = op.callee.data.split(".")[1]
    return result


def argument(
    attr: Attribute, tiles: Sequence[SSAValue], shape: tuple[int, ...]
) -> SSAValue | float:
    """One argument of a function: a tile of the shape, or a number."""
    if isinstance(attr, OperandAttr):
        value = tiles[attr.index.data]
        same = tile.shape_of(value) == shape
        return value if same else tile.BroadcastOp(value, shape).result
    assert isinstance(attr, IntegerAttr | FloatAttr)
    return float(attr.value.data)


def holds_floats(value: SSAValue) -> bool:
    """Whether a value is a tensor of floats that kernels compute with: not of float64."""
    return isinstance(value.type, TensorType) and value.type.element_type in FLOATS


def vanishes(value: SSAValue, computed: Collection[Operation | Block]) -> bool:
    """Whether a value is certainly 0 past the end of a row, where what is loaded is 0.

    Only such values can be summed over a row by tiles that reach beyond it. `computed` are the
    operations that the kernel does.
    """
    op = value.owner
    if not isinstance(op, CallOp) or op not in computed:
        return True
    factors = [vanishes(operand, computed) for operand in op.operands]
    if op.callee.data == "aten.mul.Tensor":
        return any(factors)
    if op.callee.data in SUMS:
        return all(factors) and len(factors) == 2  # neither is a number
    return op.callee.data in ZERO_AT_ZERO and all(factors)


# One call of torch's that is several functions of the table

RMS_NORM = "aten.rms_norm.default"


def expand_rms_norm(op: CallOp) -> list[CallOp]:
    """x / sqrt(mean(x²) + eps) (· weight) of torch's own norm over rows: all in float32, rounded
    once. The last operation is the result; empty where the norm is over more than rows.
    """
    import torch

    from gqc.dialects.torch_types import DTYPES

    x, *weight = op.operands
    result, (_, *more) = op.results[0].type, numbers(op.args.data[1])
    *_, last = op.args.data
    eps = last.value.data if isinstance(last, FloatAttr) else torch.finfo(torch.float32).eps
    if more or not all(map(holds_floats, op.operands)):
        return []
    assert isinstance(result, TensorType)
    wide = TensorType(f32, result.get_shape())
    ops: list[CallOp] = []

    def then(callee: str, *args: Any, type_: Attribute = wide, **kwargs: Any) -> SSAValue:
        ops.append(call(callee, args, kwargs, [type_]))
        return ops[-1].results[0]

    x = then("aten._to_copy.default", x, dtype=torch.float32)
    row = TensorType(f32, (*result.get_shape()[:-1], 1))
    mean = then(MEAN, then("aten.pow.Tensor_Scalar", x, 2), [-1], True, type_=row)
    root = then("aten.rsqrt.default", then("aten.add.Tensor", mean, eps, type_=row), type_=row)
    y = then("aten.mul.Tensor", x, root)
    if weight:
        y = then("aten.mul.Tensor", y, weight[0])
    then("aten._to_copy.default", y, type_=result, dtype=DTYPES[result.element_type])
    return ops
