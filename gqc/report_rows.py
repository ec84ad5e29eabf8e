"""Rows of the report, read off the IR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from math import prod

from torch import nn
from xdsl.dialects.builtin import ModuleOp, SymbolRefAttr
from xdsl.ir import SSAValue

from gqc.dialects import fx, gq
from gqc.dialects.gq_channels import ChannelOp, reason_of
from gqc.dialects.torch_types import DTYPES, ELEMENT_TYPES
from gqc.frontend.linears import is_linear, peculiarity
from gqc.passes.helpers import layer_name, matmuls, weight_of
from gqc.report import CastKey, Row


def rows_of(module: ModuleOp) -> Iterator[Row]:
    """Report rows of a module that keeps the legal contract: its matmuls, then other weights.

    A weight has one dense row at most, be it read by a matmul, by torch, or both.
    """
    dense: set[str] = set()
    for op in module.walk():
        if isinstance(op, gq.MatmulTOp) and weight_of(op.weight) is not None:
            row = matmul_row(op)
            if row.decision == "kept":
                dense.add(row.weight)
            yield row
    for op in module.walk():
        if isinstance(op, gq.WeightOp) and op.key not in dense:
            readers = [u.operation for u in op.result.uses]
            callees = sorted({r.callee.data for r in readers if isinstance(r, fx.CallOp)})
            if len(gq.tensor_shape(op.result)) >= 2 and callees:
                dense.add(op.key)
                reason = f"read by {', '.join(callees)}: not recognized as a linear layer"
                yield dense_row(op.key, op, op.result, "kept", reason)


def rows_outside(model: nn.Module, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of the matrices that a compile of the linear layers alone leaves, given its rows."""
    named = {row.weight: row.decision for row in rows}
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        in_linear = name in named and (named[name] == "kept" or is_linear(owner))
        if parameter.ndim < 2 or not parameter.is_floating_point() or in_linear:
            continue
        reason = f"a parameter of {type(owner).__name__}, which is no linear layer"
        if is_linear(owner):
            reason = f"more than a plain linear layer: {peculiarity(owner)}"
        element, size = str(ELEMENT_TYPES[parameter.dtype]), parameter.itemsize
        fate = (tuple(parameter.shape), "kept", reason, 8.0 * size, parameter.numel() * size)
        yield Row(name, name, element, "", *fate)


def matmul_row(op: gq.MatmulTOp) -> Row:
    """The row of one matmul."""
    assert op.decision is not None
    decision, reason = op.decision.kind.data, op.decision.reason.data
    weight, cast = weight_of(op.weight), cast_of(op.weight)
    assert weight is not None
    if cast is None:
        return dense_row(layer_name(op), weight, op.weight, decision, reason)
    type_, shape = gq.block_scaled(cast.result), gq.tensor_shape(op.weight)
    assert type_ is not None
    packs = (use.operation for use in cast.result.uses)
    held = sum(bytes_of(part) for p in packs if isinstance(p, gq.PackOp) for part in p.parts)
    fate = (shape, decision, reason, type_.bits_per_element(shape), held)
    return Row(layer_name(op), *cast_key(cast), *fate, activation=activation_of(op))


def activation_of(op: gq.MatmulTOp) -> str:
    """Format that the input of a matmul is quantized to, and its tensor scale; empty without."""
    cast = cast_of(op.x)
    if cast is None:
        return ""
    type_ = gq.block_scaled(cast.result)
    assert type_ is not None
    text = f"1x{type_.block.data[-1].data} : {type_.scale} : {type_.element}"
    if cast.tensor_scale is None:
        return text
    kind = "static" if weight_of(cast.tensor_scale) is not None else "dynamic"
    return f"{text}, global = f32 ({kind})"


def dense_row(layer: str, weight: gq.WeightOp, value: SSAValue, decision: str, reason: str) -> Row:
    """The row of a weight that stays dense and is read as `value`."""
    element, shape = gq.element_type(value), gq.tensor_shape(value)
    fate = (shape, decision, reason, 8.0 * DTYPES[element].itemsize, bytes_of(value))
    return Row(layer, weight.key, str(element), "", *fate)


def bytes_of(value: SSAValue) -> int:
    """Storage of a tensor in bytes."""
    return prod(gq.tensor_shape(value)) * DTYPES[gq.element_type(value)].itemsize


def cast_of(value: SSAValue) -> gq.QcastOp | None:
    """The cast that a value comes from, through packing and back; None without one."""
    op = value.owner
    while isinstance(op, gq.DcastOp | gq.UnpackOp | gq.PackOp):
        op = op.operands[0].owner
    return op if isinstance(op, gq.QcastOp) else None


def cast_key(cast: gq.QcastOp) -> CastKey:
    """What a quantized weight is known by: the name, the format, the quantizer and scale rule."""
    weight = weight_of(cast.source)
    assert weight is not None
    format_ = str(gq.block_scaled(cast.result))
    format_ = format_.removeprefix("!gq.block_scaled<").removesuffix(">")
    return weight.key, format_, f"{cast.quantizer.data} {cast.scale_rule.data}"


def launched(module: ModuleOp) -> dict[tuple[str, str], tuple[str, ...]]:
    """Names of the kernels launched, by layer and weight."""
    kernels: dict[tuple[str, str], tuple[str, ...]] = {}
    for op in module.walk():
        if isinstance(op, gq.LaunchOp):
            names = [op.attributes.get(name) for name in ("layer", "weight")]
            key = tuple([n.root_reference.data for n in names if isinstance(n, SymbolRefAttr)])
            if len(key) == 2:
                every = (*kernels.get(key, ()), *(name for _, name in op.buckets))
                kernels[key] = tuple(dict.fromkeys(every))
    return kernels


DONE: dict[type[ChannelOp], str] = {
    gq.ScaleChannelsOp: "multiplied by factors",
    gq.GatherChannelsOp: "permuted",
    gq.RotateChannelsOp: "rotated",
}
"""What operations do to channels, in words."""


def channels_kept(module: ModuleOp) -> dict[str, str]:
    """What layers do to the channels of their inputs as the model runs, once `fold-channels` has
    folded the rest, by layer."""
    kept: dict[str, str] = {}
    for matmul in matmuls(module):
        op, said = matmul.x.owner, []
        while isinstance(op, ChannelOp):
            said.append(f"its input is {DONE[type(op)]} as the model runs: {reason_of(op)}")
            op = op.source.owner
        if said:
            kept[layer_name(matmul)] = "; ".join(reversed(said))
    return kept
