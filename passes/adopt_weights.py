"""Adopt stored weights: linears read weights that are quantized already as they are."""

from __future__ import annotations

from dataclasses import dataclass, fields

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType, f32, i64
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import ParseError

from gqc.dialects import gq
from gqc.dialects.text import parse_block_scaled
from gqc.errors import GqcError
from gqc.passes import quantize_activations
from gqc.passes.helpers import matmuls, weight_of
from gqc.passes.quantize_weights import shared_with
from gqc.schemes import parse_scheme


@dataclass(frozen=True)
class Entry:
    """What is known of one stored weight before it is read; all but its name may be empty.

    weight: its name. type: parameters of its block-scaled type. origin: what quantized it.
    channels: what its input goes through, in order, as `gather=NAME`, `scale=NAME` (of tensors in
    the side store) or `rotate=BLOCK`. activation: text of the scheme of its input. kept: why it is
    read as a dense weight all the same.
    """

    weight: str
    type: str = ""
    origin: str = ""
    channels: str = ""
    activation: str = ""
    kept: str = ""

    def __str__(self) -> str:
        """The text that `parse_entry` reads back."""
        rest = ((field.name, getattr(self, field.name)) for field in fields(self)[1:])
        return " | ".join([self.weight, *(f"{key}: {value}" for key, value in rest if value)])


def parse_entry(text: str) -> Entry:
    """Raises GqcError on a text that is of no entry."""
    weight, *rest = text.split(" | ")
    try:
        return Entry(weight, **dict(option.split(": ", 1) for option in rest))
    except (TypeError, ValueError) as error:
        raise GqcError(f"{text!r} is no entry of a stored weight: {error}") from error


def parse_type(text: str) -> gq.BlockScaledType:
    """A block-scaled type from its parameters. Raises GqcError on any other text."""
    try:
        return parse_block_scaled(text)
    except ParseError as error:
        raise GqcError(f"{text!r} is no block-scaled type: {error}") from error


Adopted = dict[tuple[gq.WeightOp, TensorType], SSAValue]
"""The value of each stored weight."""
Moved = dict[tuple[SSAValue, str], SSAValue]
"""Each input under each change of its channels."""
BY_VECTOR = {"gather": (i64, gq.GatherChannelsOp), "scale": (f32, gq.ScaleChannelsOp)}
"""Changes of channels by the elements of their vectors."""


@dataclass(frozen=True)
class AdoptWeights(ModulePass):
    """grouped → grouped: a matmul whose weight is stored quantized reads that, not a dense one.

    `stored` are texts of `Entry`. The side store then holds a `BlockScaled`, [N, K] even where the
    model has its weight as [K, N]. Inputs are quantized as the entry says; a tensor scale that is
    static is `<layer>.input_scale` in the side store.
    """

    name = "adopt-weights"

    stored: tuple[str, ...] = ()

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        entries = {entry.weight: entry for entry in map(parse_entry, self.stored)}
        types = {text: parse_type(text) for e in entries.values() if (text := e.type)}
        adopted: Adopted = {}
        moved: Moved = {}
        casts: quantize_activations.Casts = {}
        for matmul in matmuls(op):
            weight = weight_of(matmul.weight)
            entry = entries.get(weight.key) if weight is not None else None
            if entry is None or weight is None:
                continue
            if kept := entry.kept or shared_with(matmul):
                matmul.decision = gq.DecisionAttr("kept", kept)
                continue
            adopt(matmul, weight, entry, types[entry.type], adopted)
            move_channels(matmul, entry.channels, moved)
            if entry.activation:
                scheme = parse_scheme(entry.activation)
                quantize_activations.quantize(matmul, scheme, casts)
        for dense in {weight for weight, _ in adopted}:
            erase_unread(dense)


def adopt(
    matmul: gq.MatmulTOp,
    weight: gq.WeightOp,
    entry: Entry,
    type_: gq.BlockScaledType,
    adopted: Adopted,
) -> None:
    """Make a matmul read the stored weight, one value for all that do."""
    result = TensorType(type_, gq.tensor_shape(matmul.weight))
    if (weight, result) not in adopted:
        new = gq.WeightOp(weight.key, result)
        new.attributes["origin"] = StringAttr(entry.origin)
        new.location = matmul.location
        new.result.name_hint = "wq"
        Rewriter.insert_op(new, InsertPoint.after(weight))
        adopted[weight, result] = new.result
    matmul.operands[1] = adopted[weight, result]


def move_channels(matmul: gq.MatmulTOp, channels: str, moved: Moved) -> None:
    """Make a matmul read what its input is after changes of channels, one value for alike ones."""
    for change in channels.split():
        x = matmul.x
        if (x, change) not in moved:
            ops = channel_ops(x, *change.split("=", 1))
            for op in ops:
                op.location = matmul.location
            where = InsertPoint.at_start(x.owner) if isinstance(x.owner, Block) else None
            Rewriter.insert_op(ops, where or InsertPoint.after(x.owner))  # pyright: ignore
            moved[x, change] = ops[-1].results[0]
        matmul.operands[0] = moved[x, change]


def channel_ops(x: SSAValue, how: str, operand: str) -> list[Operation]:
    """What gathers, scales or rotates the channels of an input, last dimension."""
    if how == "rotate":
        return [gq.RotateChannelsOp(x, int(operand))]
    element, change = BY_VECTOR[how]
    *_, channels = gq.tensor_shape(x)
    vector = gq.WeightOp(operand, TensorType(element, [channels]))
    return [vector, change(x, vector.result, len(gq.tensor_shape(x)) - 1)]


def erase_unread(weight: gq.WeightOp) -> None:
    """Erase a dense weight, and transposes of it, that no one reads any more."""
    for use in list(weight.result.uses):
        if isinstance(use.operation, gq.TransposeOp) and not use.operation.result.uses:
            Rewriter.erase_op(use.operation)
    if not weight.result.uses:
        Rewriter.erase_op(weight)
