"""Fuse producers: what computes an activation that is only quantized moves into its quantizer."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, Region, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.fx import CallOp
from gqc.passes.helpers import weight_of
from gqc.passes.producers import MEAN, RMS_NORM, can_produce, expand_rms_norm, vanishes


@dataclass(frozen=True)
class FuseProducers(ModulePass):
    """legal → legal: RMSNorm, SiLU·mul and their like, as one `gq.fused` before the `gq.qcast`.

    All of `gqc.passes.producers` that no one else reads is taken, up to activations [..., K] and
    vectors [K]. The quantizer's kernel then reads these, and the activation is never stored.
    """

    name = "fuse-producers"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for cast in [o for o in op.walk() if isinstance(o, gq.QcastOp)]:
            if weight_of(cast.source) is None:
                fuse(cast)


def fuse(cast: gq.QcastOp) -> None:
    """Fuse what computes the source of a cast, if anything can be."""
    expand_norm(cast.source)
    ops = producers(cast)
    if not ops:
        return
    inputs = dict.fromkeys(value for op in ops for value in op.operands if value.owner not in ops)
    ordered = sorted(inputs, key=lambda value: is_vector(value))  # activations first
    if is_vector(ordered[0]):
        return
    body = Block(arg_types=[value.type for value in ordered])
    mapping: dict[SSAValue, SSAValue] = dict(zip(ordered, body.args, strict=True))
    for value, argument in mapping.items():
        argument.name_hint = value.name_hint
    for op in ops:
        body.add_op(op.clone(mapping))
    body.add_op(gq.YieldOp(mapping[cast.source]))
    fused = gq.FusedOp(ordered, Region(body), cast.source.type)
    fused.location = ops[-1].location
    fused.result.name_hint = cast.source.name_hint
    Rewriter.insert_op(fused, InsertPoint.before(cast))
    cast.operands[0] = fused.result
    for op in reversed(ops):
        op.detach()
        op.erase()


def expand_norm(source: SSAValue) -> None:
    """Spell out torch's RMSNorm, if one reader alone has it."""
    norm = source.owner
    if (
        not isinstance(norm, CallOp)
        or norm.callee.data != RMS_NORM
        or source.has_more_than_one_use()
    ):
        return
    if ops := expand_rms_norm(norm):
        for op in ops:
            op.location = norm.location
        ops[-1].results[0].name_hint = source.name_hint
        Rewriter.replace_op(norm, ops, ops[-1].results)


def producers(cast: gq.QcastOp) -> list[CallOp]:
    """The operations that compute the source of a cast, in order, that can be fused with it."""
    found = {op: None for op in reachable(cast.source)}
    while True:
        kept = {op: None for op in found if fits(op, cast, found)}
        if kept == found:
            break
        found = kept
    if cast.source.owner not in found:
        return []
    block = cast.parent
    assert block is not None
    return [op for op in block.ops if op in found]  # pyright: ignore[reportReturnType]


def reachable(value: SSAValue) -> list[CallOp]:
    """Calls that a kernel can do, from a value backwards."""
    found: dict[CallOp, None] = {}
    pending = [value.owner]
    while pending:
        op = pending.pop()
        if isinstance(op, CallOp) and op not in found and can_produce(op):
            found[op] = None
            pending += [operand.owner for operand in op.operands]
    return [*found]


def fits(op: CallOp, cast: gq.QcastOp, found: dict[CallOp, None]) -> bool:
    """Whether only the cast and what is fused with it read an operation, and a kernel can load what
    it reads, and sum that over rows where it must."""
    readers: set[Operation] = {use.operation for use in op.results[0].uses}
    shape = gq.tensor_shape(cast.source)
    loads = [value for value in op.operands if value.owner not in found]
    if op.callee.data == MEAN and not vanishes(op.operands[0], found):
        return False
    loadable = all(gq.tensor_shape(value) in (shape, shape[-1:]) for value in loads)
    return loadable and readers <= {cast, *found}


def is_vector(value: SSAValue) -> bool:
    return len(gq.tensor_shape(value)) == 1
