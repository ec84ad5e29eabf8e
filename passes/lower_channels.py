"""Lower channels: what is left to do to the channels of activations, as torch's functions."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    GreedyRewritePatternApplier,
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)

from gqc.dialects import gq
from gqc.dialects.fx import call
from gqc.passes.helpers import replace, weight_of


@dataclass(frozen=True)
class LowerChannels(ModulePass):
    """legal → legal: mul, div and index_select in the place of operations on activations.

    A factor may then be fused with the quantizer that reads its product (`fuse-producers`).
    Rotations stay: they are an operator of ours (`torch.ops.gqc.rotate`).
    """

    name = "lower-channels"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        patterns = GreedyRewritePatternApplier([LowerScale(), LowerGather()])
        PatternRewriteWalker(patterns, apply_recursively=False).rewrite_module(op)


class LowerScale(RewritePattern):
    """A product, in the wider of two types, rounded to that of the activation."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: gq.ScaleChannelsOp, rewriter: PatternRewriter) -> None:
        if weight_of(op.source) is not None:
            return
        import torch

        from gqc.dialects.torch_types import DTYPES, ELEMENT_TYPES

        dtypes = [DTYPES[gq.element_type(value)] for value in op.operands]
        element = ELEMENT_TYPES[torch.promote_types(*dtypes)]
        wide = TensorType(element, gq.tensor_shape(op.source))
        callee = "aten.mul.Tensor" if op.inverse is None else "aten.div.Tensor"
        ops: list[Operation] = [call(callee, op.operands, {}, [wide])]
        if wide != op.result.type:
            args, kwargs = ops[0].results, {"dtype": dtypes[0]}
            ops.append(call("aten._to_copy.default", args, kwargs, [op.result.type]))
        replace(rewriter, op, ops)


class LowerGather(RewritePattern):
    """Along the last dimension, counted from the end: a layer is called with inputs of any rank."""

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: gq.GatherChannelsOp, rewriter: PatternRewriter) -> None:
        if weight_of(op.source) is None:
            args = op.source, -1, op.order
            replace(rewriter, op, [call("aten.index_select.default", args, {}, [op.result.type])])
