"""Recognize linear layers: one op, `gq.matmul_t`, for all the ways torch spells x · Wᵀ + b."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from xdsl.context import Context
from xdsl.dialects.builtin import (
    AnyFloat,
    FloatAttr,
    IntegerAttr,
    ModuleOp,
    NameLoc,
    NoneAttr,
    StringAttr,
    TensorType,
)
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from gqc.dialects import gq
from gqc.dialects.fx import CallOp, OperandAttr, call
from gqc.frontend.locations import module_path
from gqc.passes.helpers import layer_name, matmuls, replace, weight_of


@dataclass(frozen=True)
class Linear:
    """Where a callee has its input, weight and bias, and whether it wants the weight as [N, K]."""

    x: int
    weight: int
    bias: int | None
    transposed: bool


LINEARS: dict[str, Linear] = {
    "aten.linear.default": Linear(x=0, weight=1, bias=2, transposed=True),
    "aten.addmm.default": Linear(x=1, weight=2, bias=0, transposed=False),
    "aten.mm.default": Linear(x=0, weight=1, bias=None, transposed=False),
    "aten.matmul.default": Linear(x=0, weight=1, bias=None, transposed=False),
}

PRODUCTS = ("aten.mm.default", "aten.matmul.default")
"""Callees whose weight may be on the left."""

TRANSPOSES: dict[str, tuple[tuple[int, ...], ...]] = {
    "aten.t.default": ((),),
    "aten.numpy_T.default": ((),),
    "aten.transpose.int": ((0, 1), (1, 0), (-1, -2), (-2, -1)),
    "aten.permute.default": ((1, 0),),
}
"""Callees that transpose a matrix, with the integer arguments under which they do."""


def constants(attr: Attribute) -> list[int]:
    """The integers of an argument template, in order."""
    if isinstance(attr, IntegerAttr):
        return [attr.value.data]
    return [n for item in getattr(attr, "data", ()) for n in constants(item)]


def transposed_weight(value: SSAValue) -> SSAValue | None:
    """W, if the value is torch's transpose of a `gq.weight` W."""
    op = value.owner
    if not isinstance(op, CallOp) or op.callee.data not in TRANSPOSES:
        return None
    numbers = tuple(n for attr in op.args.data[1:] for n in constants(attr))
    is_weight = isinstance(op.operands[0].owner, gq.WeightOp)
    return op.operands[0] if is_weight and numbers in TRANSPOSES[op.callee.data] else None


def argument(op: CallOp, position: int | None) -> SSAValue | None:
    """The value at a position of a call's arguments; None where there is none."""
    if position is None or position >= len(op.args.data):
        return None
    attr = op.args.data[position]
    return op.operands[attr.index.data] if isinstance(attr, OperandAttr) else None


def is_one(attr: Attribute) -> bool:
    """Whether an argument is the number 1."""
    return isinstance(attr, IntegerAttr | FloatAttr) and attr.value.data == 1


def linear_calls(module: ModuleOp) -> Iterator[CallOp]:
    """Calls of linear layers, in order."""
    calls = (op for op in module.walk() if isinstance(op, CallOp))
    return (call for call in calls if weight_read(call))


def weight_read(call: CallOp) -> bool:
    """Whether a call of a linear layer reads a stored weight."""
    if call.callee.data not in LINEARS:
        return False
    weight = argument(call, LINEARS[call.callee.data].weight)
    if weight is None:
        return False
    return isinstance(weight.owner, gq.WeightOp) or transposed_weight(weight) is not None


def weight_on_left(call: CallOp) -> bool:
    """Whether a product is of a stored matrix of floats, on the left, by matrices."""
    if call.callee.data not in PRODUCTS or len(call.operands) != 2:
        return False
    weight, x = call.operands
    is_weight = isinstance(weight.owner, gq.WeightOp)
    is_matrix = is_weight and len(gq.tensor_shape(weight)) == 2 <= len(gq.tensor_shape(x))
    return is_matrix and isinstance(gq.element_type(weight), AnyFloat)


def peculiarity(call: CallOp) -> str | None:
    """Why a product with a stored weight is no linear layer; None if it is one."""
    linear = LINEARS[call.callee.data]
    x, weight = argument(call, linear.x), argument(call, linear.weight)
    bias = argument(call, linear.bias)
    if not all(map(is_one, call.kwargs.data.values())):
        return "alpha or beta is not 1"
    if x is None or weight is None or len(gq.tensor_shape(weight)) != 2:
        return "the weight is no matrix"
    if not isinstance(gq.element_type(weight), AnyFloat):
        return "the weight does not hold floats"
    if bias is not None and gq.tensor_shape(bias) != gq.tensor_shape(call.results[0])[-1:]:
        return "the bias is no vector of N"
    return None


def varies(value: SSAValue | None) -> bool:
    """Whether a value is not computed from weights alone."""
    seen: set[SSAValue] = set()
    left = [value]
    while left:
        value = left.pop()
        if value is None or value in seen:
            continue
        seen.add(value)
        if not isinstance(value.owner, CallOp | gq.WeightOp):
            return True
        if isinstance(value.owner, CallOp) and not value.owner.operands:
            return True
        left += value.owner.operands
    return False


def constant_values(module: ModuleOp) -> set[SSAValue]:
    """Values that are computed from weights alone."""
    known: set[SSAValue] = set()
    for op in module.walk():
        is_call = isinstance(op, CallOp) and len(op.operands) > 0
        if isinstance(op, gq.WeightOp) or (is_call and known.issuperset(op.operands)):
            known.update(op.results)
    return known


@dataclass
class RecognizeLinear(RewritePattern):
    """`constants` are values that do not vary: their products are no layers (LoRA's B·A), but where
    a layer's own module multiplies one, or the weight is among the `layers` that others read."""

    constants: set[SSAValue]
    layers: set[str] = field(default_factory=set)

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: CallOp, rewriter: PatternRewriter) -> None:
        if not weight_read(op) or peculiarity(op) is not None:
            return
        linear = LINEARS[op.callee.data]
        x, weight = argument(op, linear.x), argument(op, linear.weight)
        assert x is not None and weight is not None
        if x in self.constants and not self.is_layer(op, transposed_weight(weight) or weight):
            return
        inner = weight if linear.transposed else transposed_weight(weight)
        new: list[Operation] = []
        if inner is None or not isinstance(inner.owner, gq.WeightOp):  # stored as [K, N]
            new.append(gq.TransposeOp(transposed_weight(weight) or weight))
            inner = new[-1].results[0]
            inner.name_hint = "wt"
        bias = argument(op, linear.bias)
        replace(rewriter, op, [*new, gq.MatmulTOp(x, inner, bias, op.results[0].type)])

    def is_layer(self, op: CallOp, weight: SSAValue) -> bool:
        """Whether a call is that of a module by its own weight, or by the weight of a layer."""
        if not isinstance(weight.owner, gq.WeightOp):
            return False
        key, path = weight.owner.key, module_path(op)
        return key in self.layers or (path is not None and key == f"{path}.weight".lstrip("."))


@dataclass
class TurnProduct(RewritePattern):
    """W · x, of a stored weight and what varies, is (xᵀ · Wᵀ)ᵀ: a linear layer of transposes."""

    constants: set[SSAValue]

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: CallOp, rewriter: PatternRewriter) -> None:
        if not weight_on_left(op) or op.operands[1] in self.constants:
            return
        weight, x = op.operands
        before = turned(x)
        linear = call(
            "aten.linear.default", [before.results[0], weight], {}, [swapped(op.results[0])]
        )
        after = call("aten.transpose.int", [linear.results[0], -2, -1], {}, [op.results[0].type])
        replace(rewriter, op, [before, linear, after])


def turned(x: SSAValue) -> CallOp:
    """A call that swaps the last two dimensions."""
    return call("aten.transpose.int", [x, -2, -1], {}, [swapped(x)])


def swapped(value: SSAValue) -> TensorType:
    """The type of a tensor with its last two dimensions swapped."""
    *outer, rows, columns = gq.tensor_shape(value)
    return TensorType(gq.element_type(value), [*outer, columns, rows])


@dataclass(frozen=True)
class RecognizeLinears(ModulePass):
    """imported → grouped, linears as `gq.matmul_t`: linear, addmm, mm and matmul with a weight.

    Linears are of floats, and their input varies; a weight may be on either side. Those of a module
    that multiplies by several weights are told apart in their locations, by the weight.
    """

    name = "recognize-linears"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        constants = constant_values(op)
        turn = PatternRewriteWalker(TurnProduct(constants), apply_recursively=False)
        turn.rewrite_module(op)
        for _ in range(2):  # the second time for products of constants by weights found the first
            layers = {weight.key for m in matmuls(op) if (weight := weight_of(m.weight))}
            pattern = RecognizeLinear(constants, layers)
            PatternRewriteWalker(pattern, apply_recursively=False).rewrite_module(op)
        erase_unused_transposes(op)
        name_by_weights(op)


def erase_unused_transposes(module: ModuleOp) -> None:
    """Torch's transposes of weights that no one reads any more."""
    for op in list(module.walk()):
        if not isinstance(op, CallOp) or op.callee.data not in TRANSPOSES:
            continue
        if transposed_weight(op.results[0]) and not op.results[0].uses:
            op.detach()
            op.erase()


def name_by_weights(module: ModuleOp) -> None:
    """Name layers by their weights where they have the name of one module (`attn.in_proj_weight`),
    or where the weight is that of a module inside (`mixer.dt_proj`)."""
    layers = [(m, layer_name(m), w.key) for m in matmuls(module) if (w := weight_of(m.weight))]
    weights: dict[str, set[str]] = {}
    for _, name, key in layers:
        weights.setdefault(name, set()).add(key)
    for matmul, name, key in layers:
        inside = key.endswith(".weight") and key.removesuffix(".weight").startswith(f"{name}.")
        if len(weights[name]) > 1 or inside:
            line = matmul.location.location if isinstance(matmul.location, NameLoc) else NoneAttr()
            matmul.location = NameLoc(StringAttr(key.removesuffix(".weight")), line)
