"""Assign layouts: pack each quantized weight as the target's kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.pattern_rewriter import (
    PatternRewriter,
    PatternRewriteWalker,
    RewritePattern,
    op_type_rewrite_pattern,
)
from xdsl.rewriter import InsertPoint

from gqc.dialects import gq
from gqc.passes.helpers import weight_of
from gqc.targets import resolve


@dataclass
class PackQuantized(RewritePattern):
    """`gq.qcast` is followed by `gq.pack` (to be folded) and `gq.unpack` (to be fused)."""

    layout: gq.LayoutAttr

    @op_type_rewrite_pattern
    def match_and_rewrite(self, op: gq.QcastOp, rewriter: PatternRewriter) -> None:
        if weight_of(op.source) is None:
            return  # an activation, decoded where it is quantized
        pack = gq.PackOp(op.result, self.layout)
        unpack = gq.UnpackOp(pack.parts, self.layout, op.result.type)
        for new in (pack, unpack):
            new.location = op.location
        for part in pack.parts:
            part.name_hint = "packed"
        unpack.weight.name_hint = op.result.name_hint
        op.result.replace_uses_with_if(unpack.weight, lambda use: use.operation is not pack)
        rewriter.insert([pack, unpack], InsertPoint.after(op))


@dataclass(frozen=True)
class AssignLayouts(ModulePass):
    """legal → legal, each quantized weight packed in the target's layout."""

    name = "assign-layouts"

    target: str

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        target = resolve(self.target)
        layout = gq.LayoutAttr(target.layout, target.lanes)
        PatternRewriteWalker(PackQuantized(layout), apply_recursively=False).rewrite_module(op)
