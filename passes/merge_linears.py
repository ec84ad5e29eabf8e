"""Merge linears: layers that read one activation become one, whose result is split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, NameLoc, NoneAttr, StringAttr, TensorType
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.fx import CallOp, call, resolve_callee
from gqc.passes.helpers import layer_name, matmuls, weight_of

Key = tuple[SSAValue, Block | None, Attribute, Attribute, Attribute | None]
"""What layers have in common that can be merged: the input, the place, the element types of
weight, result and bias."""

APART = "a launch each, for every weight has a tensor scale of its own: {}"
"""Why layers are not merged, given their names."""


@dataclass(frozen=True)
class MergeLinears(ModulePass):
    """grouped → grouped: q, k and v, or gate and up, are one `gq.matmul_t` of a `gq.concat`.

    They read one activation, quantized alike if it is, and their weights have one block-scaled
    type; all have a bias or none has. Results are views of one tensor, by `aten.split_with_sizes`.
    The tensor scale of a weight is known only once it is quantized, so weights with one are not
    merged: the attribute `apart` says so.
    """

    name = "merge-linears"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        groups: dict[Key, list[gq.MatmulTOp]] = {}
        for matmul in matmuls(op):
            if (key := merge_key(matmul)) is not None:
                groups.setdefault(key, []).append(matmul)
        for group in groups.values():
            if len(group) > 1:
                merge(group)


def merge_key(matmul: gq.MatmulTOp) -> Key | None:
    """What a layer must share with another to be merged with it; None if it cannot be."""
    type_, bias = gq.block_scaled(matmul.weight), matmul.bias
    if type_ is None or weight_of(matmul.weight) is None or not matmul.weight.has_one_use():
        return None
    if weight_of(matmul.x) is not None or (bias is not None and weight_of(bias) is None):
        return None
    result = gq.element_type(matmul.result)
    return matmul.x, matmul.parent, type_, result, None if bias is None else gq.element_type(bias)


def merge(group: Sequence[gq.MatmulTOp]) -> None:
    """Replace layers by one at the place of the first, or say why not."""
    first, names = group[0], ", ".join(map(layer_name, group))
    type_ = gq.block_scaled(first.weight)
    assert type_ is not None
    if type_.has_tensor_scale:
        for matmul in group:
            matmul.attributes["apart"] = StringAttr(APART.format(names))
        return
    for matmul in group:
        assert isinstance(matmul.weight.owner, Operation)
        matmul.weight.owner.location = matmul.location  # a report finds the layer's name there
    ops = merged_ops(group)
    for op in ops:
        op.location = NameLoc(StringAttr(names), NoneAttr())
    Rewriter.insert_op(ops, InsertPoint.before(first))
    for matmul, part in zip(group, ops[-1].results, strict=True):
        part.name_hint = matmul.result.name_hint
        matmul.result.replace_all_uses_with(part)
        Rewriter.erase_op(matmul)
        allow_strides(part)


def merged_ops(group: Sequence[gq.MatmulTOp]) -> list[Operation]:
    """The weights, and biases, together, a matmul of them, and the call that splits its result."""
    first, types = group[0], [matmul.result.type for matmul in group]
    weights = concat(first, [matmul.weight for matmul in group], "w")
    biases = [matmul.bias for matmul in group if matmul.bias is not None]
    bias = concat(first, biases, "b") if biases else None
    sizes = [gq.tensor_shape(type_)[-1] for type_ in types]
    shape = (*gq.tensor_shape(first.x)[:-1], sum(sizes))
    result = TensorType(gq.element_type(first.result), shape)
    matmul = gq.MatmulTOp(first.x, weights.result, None if bias is None else bias.result, result)
    matmul.result.name_hint = "y"
    split = call("aten.split_with_sizes.default", (matmul.result, sizes, -1), {}, types)
    return [weights, *([] if bias is None else [bias]), matmul, split]


def concat(first: gq.MatmulTOp, sources: Sequence[SSAValue], name: str) -> gq.ConcatOp:
    """The sources together, once what makes them is before the first layer."""
    for source in sources:
        hoist(source, first)
    op = gq.ConcatOp(sources)
    op.result.name_hint = name
    return op


def hoist(value: SSAValue, place: Operation) -> None:
    """Move what makes a form of a weight, and depends on weights alone, before an operation."""
    op = value.owner
    assert isinstance(op, Operation)
    for operand in op.operands:
        hoist(operand, place)
    if op.parent is place.parent and not op.is_before_in_block(place):
        op.detach()
        Rewriter.insert_op(op, InsertPoint.before(place))


def allow_strides(value: SSAValue) -> None:
    """Have torch's views of a value, and views of these, copy it where its strides demand that."""
    for op in [use.operation for use in value.uses]:
        if isinstance(op, CallOp) and is_view(op):
            if op.callee.data == "aten.view.default":
                op.properties["callee"] = StringAttr("aten.reshape.default")
            for result in op.results:
                allow_strides(result)


def is_view(op: CallOp) -> bool:
    """Whether a call gives (a list of) views of its argument."""
    schema = getattr(resolve_callee(op.callee.data), "_schema", None)
    return schema is not None and any(r.alias_info is not None for r in schema.returns)
