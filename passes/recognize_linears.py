"""Recognize linear layers: one op, `gq.matmul_t`, for all the ways torch spells x · Wᵀ + b."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import IntegerAttr, ModuleOp
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from gqc.dialects import gq
from gqc.dialects.fx import CallOp, OperandAttr
from gqc.passes.helpers import replace


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


class RecognizeLinear(RewritePattern):
    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: CallOp, rewriter: PatternRewriter) -> None:
        linear = LINEARS.get(op.callee.data)
        if linear is None or op.kwargs.data:  # addmm's alpha and beta
            return
        x, weight = argument(op, linear.x), argument(op, linear.weight)
        bias = argument(op, linear.bias)
        if x is None or weight is None or len(gq.tensor_shape(weight)) != 2:
            return
        if bias is not None and gq.tensor_shape(bias) != gq.tensor_shape(op.results[0])[-1:]:
            return
        new: list[Operation] = []
        if not linear.transposed:
            inner = transposed_weight(weight)
            if inner is None and isinstance(weight.owner, gq.WeightOp):
                new.append(gq.TransposeOp(weight))
                inner = new[-1].results[0]
                inner.name_hint = "wt"
            weight = inner
        elif not isinstance(weight.owner, gq.WeightOp):
            return
        if weight is None:
            return
        replace(rewriter, op, [*new, gq.MatmulTOp(x, weight, bias, op.results[0].type)])


@dataclass(frozen=True)
class RecognizeLinears(ModulePass):
    """imported → imported, linears as `gq.matmul_t`: linear, addmm, mm and matmul with a weight."""

    name = "recognize-linears"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        PatternRewriteWalker(RecognizeLinear(), apply_recursively=False).rewrite_module(op)
        erase_unused_transposes(op)


def erase_unused_transposes(module: ModuleOp) -> None:
    """Torch's transposes of weights that no one reads any more."""
    for op in list(module.walk()):
        if not isinstance(op, CallOp) or op.callee.data not in TRANSPOSES:
            continue
        if transposed_weight(op.results[0]) and not op.results[0].uses:
            op.detach()
            op.erase()
