"""Fold channels: operations on the channels of an activation move into the weights before."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.gq_channels import ByVector, ChannelOp
from gqc.passes.channel_paths import Leaf, Path, Stays, named
from gqc.passes.helpers import weight_of, written_buffers


@dataclass(frozen=True)
class FoldChannels(ModulePass):
    """grouped → grouped: what all readers of an activation do to its channels, done before.

    A `gq.scale_channels` goes into the weights (and biases) of a norm, a linear layer, or of the
    values of attention; a `gq.gather_channels` into the rows of linear layers. What the weights
    become are operations on them, which `fold-weights` computes. An operation that cannot move runs
    with the model; its `reason` says why.
    """

    name = "fold-channels"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        merge_equal(op)
        fixed = fixed_weights(op)
        for change in on_activations(op):
            if isinstance(change, gq.RotateChannelsOp):
                keep(change, "a rotation mixes channels, and passes no norm or product before it")
                continue
            try:
                fold(change, Path(change, fixed).leaves())
            except Stays as stays:
                keep(change, str(stays))


def on_activations(module: ModuleOp) -> list[ChannelOp]:
    """The operations on channels of activations, in order."""
    changes = (op for op in module.walk() if isinstance(op, ChannelOp))
    return [op for op in changes if weight_of(op.source) is None]


def fixed_weights(module: ModuleOp) -> dict[str, str]:
    """Weights that others read, outside of the module or in another function of it, and buffers."""
    weights = [op for op in module.walk() if isinstance(op, gq.WeightOp)]
    names = Counter(op.key for op in weights)
    fixed = {name: f"the model writes {name}" for name in written_buffers(module)}
    for op in weights:
        if names[op.key] > 1 or "shared" in op.attributes:
            fixed[op.key] = f"{op.key} is read elsewhere too"
        elif "buffer" in op.attributes:
            fixed[op.key] = f"{op.key} is a buffer, not a parameter"
    return fixed


def keep(change: ChannelOp, reason: str) -> None:
    """Leave an operation where it is, and say why."""
    change.attributes["reason"] = StringAttr(reason)


def identity(op: ChannelOp) -> tuple:
    """Equal for operations that do the same to the same value."""
    others = (weight_of(v) or v for v in op.operands[1:])
    keys = tuple(o.key if isinstance(o, gq.WeightOp) else o for o in others)
    return op.operands[0], keys, op.name, tuple(sorted(op.properties.items()))


def merge_equal(module: ModuleOp) -> None:
    """One operation for all that do the same to one value."""
    first: dict[tuple, ChannelOp] = {}
    for op in on_activations(module):
        known = first.setdefault(identity(op), op)
        if known is not op:
            op.result.replace_all_uses_with(known.result)
            Rewriter.erase_op(op)


def fold(change: ByVector, leaves: list[Leaf]) -> None:
    """Change weights in the place of an activation."""
    vector = change.operands[1]
    if not isinstance(vector.owner, gq.WeightOp):
        raise Stays(f"{named(vector.owner)} computes its operand as the model runs")
    move_to_front(vector.owner)
    for leaf in dict.fromkeys(leaves):
        insert(leaf, change)
    change.result.replace_all_uses_with(change.source)
    Rewriter.erase_op(change)


def move_to_front(weight: gq.WeightOp) -> None:
    """A weight before all that may come to read it."""
    block = weight.parent
    assert block is not None and block.first_op is not None
    if block.first_op is not weight:
        weight.detach()
        block.insert_op_before(weight, block.first_op)


def insert(leaf: Leaf, change: ByVector) -> ByVector:
    """Put a change on the weight of a leaf, before it is transposed or quantized."""
    reader, index, dim = leaf.op, leaf.index, leaf.dim
    while isinstance(op := reader.operands[index].owner, gq.TransposeOp | gq.QcastOp):
        dim = 1 - dim if isinstance(op, gq.TransposeOp) else dim
        reader, index = op, 0
    source, vector = reader.operands[index], change.operands[1]
    if isinstance(change, gq.GatherChannelsOp):
        new = gq.GatherChannelsOp(source, vector, dim)
    else:
        new = gq.ScaleChannelsOp(source, vector, dim, change.inverse is not None, leaf.offset)
    assert isinstance(source.owner, Operation)
    new.location = source.owner.location
    new.result.name_hint = source.name_hint
    Rewriter.insert_op(new, InsertPoint.after(source.owner))
    reader.operands[index] = new.result
    return new
