"""What a change of channels moves through, from an activation back to the weights that absorb it.

A change multiplies the channels of a tensor, or permutes them. Rules say for each of torch's
functions which of its inputs must change so that its output does: exactly, but for rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

from xdsl.dialects.builtin import AnyFloat, FloatAttr, IntegerAttr, TensorType
from xdsl.dialects.func import ReturnOp
from xdsl.ir import Block, Operation, SSAValue

from gqc.dialects import gq
from gqc.dialects.fx import CallOp, OperandAttr
from gqc.dialects.gq_channels import ByVector
from gqc.passes.extents import same_extents
from gqc.passes.helpers import is_sole_reader, weight_of
from gqc.passes.recognize_linears import constants

Axes = tuple[int, ...]
"""The dimensions of a tensor that its channels are numbered along, the last one fastest."""


class Stays(Exception):
    """Why a change cannot be moved."""


@dataclass(frozen=True)
class Leaf:
    """A place where a weight is to be changed: the operand of an operation, the dimension of its
    channels, and what the model adds to it before it multiplies."""

    op: Operation
    index: int
    dim: int
    offset: float | None = None


Use = tuple[Operation, int]
"""An operand of an operation."""


@dataclass
class Path:
    """The search for the weights to change in place of an activation.

    A factor goes into one side of a product, along a path that nothing else reads. A permutation
    goes into both sides, and each use of a value on the way must be on the way too.
    """

    change: ByVector
    fixed: Mapping[str, str]
    """Weights that may not be changed, by name, and why."""
    uses: set[Use] = field(default_factory=set)
    reached: dict[SSAValue, Axes] = field(default_factory=dict)
    pending: list[Use] = field(default_factory=list)
    """What a permutation goes through: uses, the values used, and uses yet to follow."""

    @property
    def scales(self) -> bool:
        """Whether the change is by factors, not a permutation."""
        return isinstance(self.change, gq.ScaleChannelsOp)

    def leaves(self) -> list[Leaf]:
        """Where weights are to be changed. Raises Stays."""
        found = self.follow(self.change, 0, (self.change.axis,))
        while self.pending:
            reader, index = self.pending.pop()
            found += self.step(reader, index, self.reached[reader.operands[index]])
        for value in self.reached:
            refuse_readers(value, self.uses)
        return found

    def follow(
        self, reader: Operation, index: int, axes: Axes, offset: float | None = None
    ) -> list[Leaf]:
        """Where weights are to be changed so that an operand of an operation is.

        A permutation is followed later: every path has to go through, and there may be many.
        """
        if self.scales:
            return self.step(reader, index, axes, offset)
        if len(axes) > 1:
            raise Stays("the permutation would mix the heads of an attention")
        value = reader.operands[index]
        if value not in self.reached:
            self.pending.append((reader, index))
        if self.reached.setdefault(value, axes) != axes:
            raise Stays(f"{named(value.owner)} is read along two dimensions")
        self.uses.add((reader, index))
        return []

    def step(
        self, reader: Operation, index: int, axes: Axes, offset: float | None = None
    ) -> list[Leaf]:
        """The same, one operation on."""
        value = reader.operands[index]
        if weight_of(value) is not None:
            return [self.leaf(reader, index, axes, offset)]
        op = value.owner
        if isinstance(op, Block):
            raise Stays("an argument of the function: nothing before it is known")
        if self.scales:
            refuse_readers(value, {(reader, index)})
        if not isinstance(gq.element_type(value), AnyFloat):
            raise Stays(f"{named(op)} gives no floats")
        rule = matmul if isinstance(op, gq.MatmulTOp) else None
        if isinstance(op, CallOp):
            rule = RULES.get(op.callee.data)
        if rule is None or (offset is not None and rule is not through):
            raise Stays(f"{named(op)} computes it")
        return rule(self, op, axes) if offset is None else self.follow(op, 0, axes, offset)

    def leaf(self, reader: Operation, index: int, axes: Axes, offset: float | None) -> Leaf:
        """The weight that an operand is, if it may be changed."""
        value, (dim, *more) = reader.operands[index], axes
        weight = weight_of(value)
        assert weight is not None
        if more:
            raise Stays(f"{weight.key} has its channels along several dimensions")
        if not is_sole_reader(value):
            raise Stays(f"{weight.key} is read elsewhere too")
        if reason := self.fixed.get(weight.key):
            raise Stays(reason)
        type_ = gq.block_scaled(weight.result)
        if type_ is not None and self.scales:
            raise Stays(f"{weight.key} is quantized already, and codes cannot be scaled")
        if type_ is not None and type_.block_of(gq.tensor_shape(value))[dim] != 1:
            raise Stays(f"blocks of {weight.key} extend over several rows")
        return Leaf(reader, index, dim, offset)


def refuse_readers(value: SSAValue, known: Collection[Use]) -> None:
    """Raise Stays if a value has other uses than those known."""
    others = [use.operation for use in value.uses if (use.operation, use.index) not in known]
    if others:
        names = ", ".join(dict.fromkeys(map(named, others)))
        raise Stays(f"{named(value.owner)} is read by {names} too")


def named(op: Operation | Block) -> str:
    """What an operation is called in a reason."""
    if isinstance(op, ReturnOp):
        return "the caller"
    if isinstance(op, Block):
        return "an argument"
    return op.callee.data if isinstance(op, CallOp) else op.name


# Rules: from the axes of an operation's result to those of its operands

Rule = Callable[[Path, Operation, Axes], list[Leaf]]


def aligned(value: SSAValue, op: Operation, axes: Axes) -> Axes | None:
    """The axes of an operand that is broadcast to the result; None if it has none of them."""
    if not isinstance(value.type, TensorType):
        return None
    shape, result = gq.tensor_shape(value), gq.tensor_shape(op.results[0])
    own = [axis - len(result) + len(shape) for axis in axes]
    varies = [axis >= 0 and shape[axis] == result[a] for axis, a in zip(own, axes, strict=True)]
    if not any(varies):
        return None
    if not all(varies):
        raise Stays(f"{named(op)} repeats some of its channels")
    return tuple(own)


def varying(op: CallOp, axes: Axes) -> list[tuple[int, Axes]]:
    """The operands that vary along the channels, with their axes."""
    each = ((i, aligned(value, op, axes)) for i, value in enumerate(op.operands))
    return [(i, own) for i, own in each if own is not None]


def through(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Functions that change only how a tensor is held."""
    return path.follow(op, 0, axes)


def pointwise(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Functions of each element: of permuted elements, permuted values."""
    assert isinstance(op, CallOp)
    if path.scales:
        raise Stays(f"{named(op)} of a multiple is no multiple")
    return [leaf for i, own in varying(op, axes) for leaf in path.follow(op, i, own)]


def product(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """A factor goes into one side, the first that can take it."""
    assert isinstance(op, CallOp)
    if not path.scales:
        return pointwise(path, op, axes)
    reasons: dict[str, None] = {}
    for i, own in varying(op, axes):
        try:
            return path.follow(op, i, own)
        except Stays as stays:
            reasons[str(stays)] = None
    raise Stays("; ".join(reasons))


def quotient(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """A factor goes into the dividend."""
    assert isinstance(op, CallOp)
    if not path.scales:
        return pointwise(path, op, axes)
    own = aligned(op.operands[0], op, axes) if isinstance(op.args.data[0], OperandAttr) else None
    if own is None:
        raise Stays(f"what {named(op)} divides does not vary by channels")
    return path.follow(op, 0, own)


def total(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """A factor goes into both sides. A number that is added to a weight is part of it."""
    assert isinstance(op, CallOp)
    if not path.scales:
        return pointwise(path, op, axes)
    added = [a.value.data for a in op.args.data if isinstance(a, IntegerAttr | FloatAttr)]
    sides = varying(op, axes)
    if len(sides) + len(added) != 2 or (added and op.kwargs.data):
        raise Stays(f"a side of {named(op)} does not vary by channels")
    if not added:
        return [leaf for i, own in sides for leaf in path.follow(op, i, own)]
    (index, own), sign = sides[0], -1 if op.callee.data == "aten.sub.Tensor" else 1
    if sign < 0 and not isinstance(op.args.data[0], OperandAttr):
        raise Stays(f"{named(op)} subtracts it from a number")
    return path.follow(op, index, own, sign * float(added[0]))


def norm(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """A norm over rows: its weight and bias take a factor."""
    assert isinstance(op, CallOp)
    if not path.scales:
        raise Stays(f"{named(op)} would need its input permuted")
    last = len(gq.tensor_shape(op.results[0])) - 1
    has_weight = len(op.args.data) > 2 and isinstance(op.args.data[2], OperandAttr)
    of_rows = all(len(gq.tensor_shape(value)) == 1 for value in op.operands[1:])
    if axes != (last,) or not has_weight or not of_rows:
        raise Stays(f"{named(op)} has no weight by channels")
    return [leaf for i in range(1, len(op.operands)) for leaf in path.follow(op, i, (0,))]


def matmul(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """A linear layer: rows of its weight, and its bias."""
    assert isinstance(op, gq.MatmulTOp)
    if axes != (len(gq.tensor_shape(op.result)) - 1,):
        raise Stays("channels of a linear layer lie along another dimension")
    changed = (1,) if op.bias is None else (1, 2)
    return [leaf for i in changed for leaf in path.follow(op, i, (0,))]


def transpose(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Two dimensions change places."""
    assert isinstance(op, CallOp)
    rank = len(gq.tensor_shape(op.results[0]))
    a, b = (n % rank for n in constants(op.args)[-2:])
    return path.follow(op, 0, tuple({a: b, b: a}.get(axis, axis) for axis in axes))


def permute(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Dimensions in another order."""
    assert isinstance(op, CallOp)
    order = constants(op.args.data[1])
    return path.follow(op, 0, tuple(order[axis] % len(order) for axis in axes))


def take(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """A part of a tensor, of all channels."""
    assert isinstance(op, CallOp)
    shape, result = (gq.tensor_shape(value) for value in (op.operands[0], op.results[0]))
    dim = constants(op.args.data[1])[0] % len(shape) if len(op.args.data) > 1 else 0
    if dim in axes and shape[dim] != result[dim]:
        raise Stays(f"{named(op)} takes some of the channels")
    return path.follow(op, 0, axes)


def reshape(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Channels along trailing dimensions, split or joined; or the same dimensions again."""
    shape, result = (gq.tensor_shape(value) for value in (op.operands[0], op.results[0]))
    if axes == tuple(range(len(result) - len(axes), len(result))):
        count = prod(result[axis] for axis in axes)
        start = len(shape)
        while start > 0 and 0 < prod(shape[start:]) < count:
            start -= 1
        if prod(shape[start:]) == count:
            return path.follow(op, 0, tuple(range(start, len(shape))))
    elif same_extents(op.operands[0], op.results[0]):
        return path.follow(op, 0, axes)
    if repeats_heads(op.operands[0]):
        raise Stays("several query heads read a head of values, and their factors differ")
    raise Stays(f"{named(op)} joins channels with other dimensions")


def repeats_heads(value: SSAValue) -> bool:
    """Whether a tensor was repeated along a dimension, as values are for grouped queries."""
    op = value.owner
    while isinstance(op, CallOp) and op.callee.data == "aten.clone.default":
        op = op.operands[0].owner
    return isinstance(op, CallOp) and op.callee.data == "aten.expand.default"


def attention(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Sums of values [..., heads, tokens, channels] over tokens: a factor goes into the values."""
    result, (_, _, value, *_) = gq.tensor_shape(op.results[0]), op.operands
    return weighted_sum(path, op, 2, axes, result, gq.tensor_shape(value))


def batched_matmul(path: Path, op: Operation, axes: Axes) -> list[Leaf]:
    """Attention as a product of weights and values."""
    result, value = gq.tensor_shape(op.results[0]), gq.tensor_shape(op.operands[1])
    return weighted_sum(path, op, 1, axes, result, value)


def weighted_sum(
    path: Path, op: Operation, index: int, axes: Axes, result: Sequence[int], value: Sequence[int]
) -> list[Leaf]:
    """A factor of sums over the tokens of values goes into the values."""
    if len(value) != len(result) or len(result) - 2 in axes:
        raise Stays(f"{named(op)} has its channels along another dimension")
    if any(result[axis] != value[axis] for axis in axes):
        raise Stays("several query heads read a head of values, and their factors differ")
    return path.follow(op, index, axes)


SAME_VALUES = ("_to_copy", "clone", "alias", "detach", "contiguous", "type_as")
OF_EACH_ELEMENT = (
    *("silu", "gelu", "relu", "sigmoid", "tanh", "exp", "abs", "sqrt", "rsqrt", "erf", "hardtanh"),
    *("leaky_relu", "elu", "softplus", "mish", "hardswish", "hardsigmoid", "clamp", "neg"),
)

RULES: dict[str, Rule] = {
    **{f"aten.{name}.default": through for name in SAME_VALUES},
    **{f"aten.{name}.default": pointwise for name in OF_EACH_ELEMENT},
    "aten.pow.Tensor_Scalar": pointwise,
    "aten.mul.Tensor": product,
    "aten.div.Tensor": quotient,
    "aten.add.Tensor": total,
    "aten.sub.Tensor": total,
    "aten.layer_norm.default": norm,
    "aten.rms_norm.default": norm,
    "aten.view.default": reshape,
    "aten._unsafe_view.default": reshape,
    "aten.reshape.default": reshape,
    "aten.transpose.int": transpose,
    "aten.permute.default": permute,
    "aten.slice.Tensor": take,
    "aten.scaled_dot_product_attention.default": attention,
    "aten.matmul.default": batched_matmul,
}
"""Rules by callee."""
