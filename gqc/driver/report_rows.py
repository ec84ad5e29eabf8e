"""Rows of the report, read off the IR."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import prod

from torch import nn
from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr, SymbolRefAttr
from xdsl.ir import Attribute, SSAValue

from gqc.checkpoints.source import Origin
from gqc.dialects import fx, gq
from gqc.dialects.gq_channels import ChannelOp, reason_of
from gqc.dialects.text import parse_block_scaled
from gqc.dialects.torch_types import DTYPES, ELEMENT_TYPES
from gqc.driver.materialize import Quantized
from gqc.driver.report import CastKey, Row
from gqc.frontend.linears import is_linear, peculiarity
from gqc.frontend.routers import routers
from gqc.passes.helpers import layer_name, layer_names, matmuls, merged, weight_of
from gqc.passes.order_of_k import BATCH
from gqc.runtime.embedding import QuantizedEmbedding

LOOK_UP = "gqc.embedding.default"
"""The callee of an embedding whose table is quantized."""


def rows_of(module: ModuleOp) -> Iterator[Row]:
    """Report rows of a module that keeps the legal contract: its matmuls, then other weights.

    A weight has one dense row at most, be it read by a matmul, by torch, or both.
    """
    dense: set[str] = set()
    for op in module.walk():
        if isinstance(op, gq.MatmulTOp) and weight_of(op.weight) is not None:
            for row in matmul_rows(op):
                if row.decision == "kept":
                    dense.add(row.weight)
                yield row
    for op in module.walk():
        if isinstance(op, gq.WeightOp) and op.key not in dense:
            readers = [u.operation for u in op.result.uses]
            called = {r.callee.data for r in readers if isinstance(r, fx.CallOp)}
            callees = sorted(called - {LOOK_UP})  # of which `rows_of_embeddings` tells
            if len(gq.tensor_shape(op.result)) >= 2 and callees:
                dense.add(op.key)
                reason = f"read by {', '.join(callees)}: not recognized as a linear layer"
                yield dense_row(op.key, op, op.result, "kept", reason)


def rows_of_embeddings(model: nn.Module, tables: Mapping[str, Origin]) -> Iterator[Row]:
    """Rows of the embeddings of a model that look up rows of quantized tables, given what quantized
    these, by name."""
    for path, module in model.named_modules():
        if isinstance(module, QuantizedEmbedding):
            name = f"{path}.weight"
            made = tables[name]
            shape = (module.num_embeddings, module.embedding_dim)
            bits = parse_block_scaled(module.format).bits_per_element(shape)
            held = sum(part.nbytes for part in module.buffers())
            fate = (shape, "emulated", "rows are decoded as they are looked up", bits, held)
            yield Row(path, name, module.format, made.method, *fate, sqnr=made.sqnr)


def rows_outside(model: nn.Module, rows: Iterable[Row]) -> Iterator[Row]:
    """Rows of the matrices that a compile of the linear layers alone leaves, given its rows."""
    named = {row.weight: row.decision for row in rows}
    choosing = routers({name: parameter.shape for name, parameter in model.named_parameters()})
    for name, parameter in model.named_parameters():
        owner = model.get_submodule(name.rpartition(".")[0])
        in_linear = name in named and (named[name] == "kept" or is_linear(owner))
        if parameter.ndim < 2 or not parameter.is_floating_point() or in_linear:
            continue
        kind = "a router of experts: " if name in choosing else ""
        reason = f"{kind}a parameter of {type(owner).__name__}, which is no linear layer"
        if is_linear(owner):
            reason = f"more than a plain linear layer: {peculiarity(owner)}"
        element, size = str(ELEMENT_TYPES[parameter.dtype]), parameter.itemsize
        fate = (tuple(parameter.shape), "kept", reason, 8.0 * size, parameter.numel() * size)
        yield Row(name, name, element, "", *fate)


def matmul_rows(op: gq.MatmulTOp) -> Iterator[Row]:
    """The row of one matmul, or of each layer that it was merged of."""
    assert op.decision is not None
    decision, reason = op.decision.kind.data, op.decision.reason.data
    weight = weight_of(op.weight)
    assert weight is not None
    if quantized_of(op.weight) is None:
        yield dense_row(layer_name(op), weight, op.weight, decision, reason)
        return
    parts, names = merged(op.weight), layer_names(op, op.weight)
    for name, part in zip(names, parts, strict=True):
        quantized = quantized_of(part)
        assert quantized is not None
        type_, shape = gq.block_scaled(quantized.result), gq.tensor_shape(part)
        assert type_ is not None
        held = packed_bytes(quantized.result)
        fate = (shape, decision, reason, type_.bits_per_element(shape), held)
        yield Row(
            name,
            *key_of(quantized),
            *fate,
            activation=activation_of(op),
            launch=f"one launch: {', '.join(names)}" if len(names) > 1 else said(op, "apart"),
            batch=said(op, BATCH),
        )


def said(op: gq.MatmulTOp, name: str) -> str:
    """What an attribute says of a matmul, such as `apart`: why it was not merged with others that
    read its input; empty without it."""
    text = op.attributes.get(name)
    return text.data if isinstance(text, StringAttr) else ""


def activation_of(op: gq.MatmulTOp) -> str:
    """Format that the input of a matmul is quantized to, and its tensor scale; empty without."""
    cast = quantized_of(op.x)
    if not isinstance(cast, gq.QcastOp):
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


def packed_bytes(value: SSAValue) -> int:
    """Storage of what a quantized weight is packed into, its rows in any order; its share where
    several are packed together."""
    readers = [use.operation for use in value.uses]
    parts = (part for op in readers if isinstance(op, gq.PackOp) for part in op.parts)
    moved = (op.result for op in readers if isinstance(op, gq.GatherChannelsOp))
    shares = (share(op, value) for op in readers if isinstance(op, gq.ConcatOp))
    return sum(map(bytes_of, parts)) + sum(map(packed_bytes, moved)) + sum(shares)


def share(op: gq.ConcatOp, value: SSAValue) -> int:
    """A weight's share, by rows, of the storage of several; all shares make up the whole."""
    total, ends, rows = packed_bytes(op.result), [0], gq.tensor_shape(op.result)[0]
    for source in op.sources:
        ends.append(ends[-1] + gq.tensor_shape(source)[0])
    at = [*op.sources].index(value)
    first, last = (total * end // rows for end in ends[at : at + 2])
    return last - first


def quantized_of(value: SSAValue) -> Quantized | None:
    """The cast or the stored weight that a value comes from, through packing and back, if any."""
    op = value.owner
    while isinstance(op, gq.DcastOp | gq.UnpackOp | gq.PackOp | gq.GatherChannelsOp | gq.ConcatOp):
        op = op.operands[0].owner
    if isinstance(op, gq.QcastOp | gq.WeightOp) and gq.block_scaled(op.result) is not None:
        return op
    return None


def key_of(op: Quantized) -> CastKey:
    """What a quantized weight is known by: the name, the format, how it was quantized."""
    weight, type_ = weight_of(op.result), gq.block_scaled(op.result)
    assert weight is not None and type_ is not None
    if isinstance(op, gq.QcastOp):
        return weight.key, type_.text, f"{op.quantizer.data} {op.scale_rule.data}"
    origin = op.attributes.get("origin")
    return weight.key, type_.text, origin.data if isinstance(origin, StringAttr) else ""


def launched(module: ModuleOp) -> dict[tuple[str, str], tuple[str, ...]]:
    """Names of the kernels launched, by layer and weight."""
    kernels: dict[tuple[str, str], tuple[str, ...]] = {}
    for op in module.walk():
        if isinstance(op, gq.LaunchOp):
            names = [symbols(op.attributes.get(name)) for name in ("layer", "weight")]
            for key in zip(*names, strict=True):
                every = (*kernels.get(key, ()), *(name for _, name in op.buckets))
                kernels[key] = tuple(dict.fromkeys(every))
    return kernels


def symbols(attribute: Attribute | None) -> list[str]:
    """The names of a symbol, of several of them, or of none."""
    several = attribute if isinstance(attribute, ArrayAttr) else [attribute]
    return [each.root_reference.data for each in several if isinstance(each, SymbolRefAttr)]


DONE: dict[type[ChannelOp], str] = {
    gq.ScaleChannelsOp: "multiplied by factors",
    gq.GatherChannelsOp: "permuted",
    gq.RotateChannelsOp: "rotated",
}
"""What operations do to channels, in words."""


def channels_kept(module: ModuleOp) -> dict[str, str]:
    """What layers do to the channels of their inputs as the model runs, once `fold-channels` has
    folded the rest, by layer: of a module that keeps the grouped contract."""
    kept: dict[str, str] = {}
    for matmul in matmuls(module):
        op, said = matmul.x.owner, []
        if isinstance(op, gq.QcastOp):
            op = op.source.owner
        while isinstance(op, ChannelOp):
            said.append(f"its input is {DONE[type(op)]} as the model runs: {reason_of(op)}")
            op = op.source.owner
        if said:
            names = layer_names(matmul, matmul.weight)
            kept |= dict.fromkeys(names, "; ".join(reversed(said)))
    return kept
