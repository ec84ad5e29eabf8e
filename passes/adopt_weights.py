"""Adopt stored weights: linears read weights that are quantized already as they are."""

from __future__ import annotations

from dataclasses import dataclass, fields

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType, f32, i64
from xdsl.ir import Block, Operation, SSAValue
from xdsl.parser import Parser
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter
from xdsl.utils.exceptions import ParseError

from gqc.dialects import gq
from gqc.dialects.text import context
from gqc.errors import GqcError
from gqc.passes import quantize_activations
from gqc.passes.helpers import matmuls, weight_of
from gqc.passes.quantize_weights import SHARED, is_shared
from gqc.schemes import parse_scheme


@dataclass(frozen=True)
class Form:
    """What is known of one stored weight before it is read; all but its name may be empty.

    weight: its name. type: parameters of its block-scaled type. origin: what quantized it. order,
    factor: names of what its input channels are gathered or multiplied by first. rotation: how many
    of them are rotated together. activation: text of the scheme of its input. kept: why it is read
    as a dense weight all the same.
    """

    weight: str
    type: str = ""
    origin: str = ""
    order: str = ""
    factor: str = ""
    rotation: str = ""
    activation: str = ""
    kept: str = ""

    def __str__(self) -> str:
        """The text that `parse_form` reads back."""
        rest = ((field.name, getattr(self, field.name)) for field in fields(self)[1:])
        return " | ".join([self.weight, *(f"{key}: {value}" for key, value in rest if value)])


def parse_form(text: str) -> Form:
    """Raises GqcError on a text that is not of a form."""
    weight, *rest = text.split(" | ")
    try:
        return Form(weight, **dict(option.split(": ", 1) for option in rest))
    except (TypeError, ValueError) as error:
        raise GqcError(f"{text!r} is no form of a stored weight: {error}") from error


def parse_type(text: str) -> gq.BlockScaledType:
    """A block-scaled type from its parameters. Raises GqcError on any other text."""
    try:
        return Parser(context(), f"!gq.block_scaled<{text}>").parse_attribute()  # pyright: ignore[reportReturnType]
    except ParseError as error:
        raise GqcError(f"{text!r} is no block-scaled type: {error}") from error


Adopted = dict[tuple[gq.WeightOp, TensorType], SSAValue]
"""The value of each stored weight."""
Moved = dict[tuple[SSAValue, tuple[str, str, str]], SSAValue]
"""Each input under each order, factor and rotation of its channels."""


@dataclass(frozen=True)
class AdoptWeights(ModulePass):
    """imported → grouped: a matmul whose weight is stored quantized reads that, not a dense one.

    `forms` are texts of `Form`. The side store then holds a `BlockScaled`, [N, K] even where the
    model has its weight as [K, N]. Inputs are quantized as the form says; a tensor scale that is
    static is `<layer>.input_scale` in the side store.
    """

    name = "adopt-weights"

    forms: tuple[str, ...] = ()

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        forms = {form.weight: form for form in map(parse_form, self.forms)}
        types = {form.type: parse_type(form.type) for form in forms.values() if form.type}
        adopted: Adopted = {}
        moved: Moved = {}
        casts: quantize_activations.Casts = {}
        for matmul in matmuls(op):
            weight = weight_of(matmul.weight)
            form = forms.get(weight.key) if weight is not None else None
            if form is None or weight is None:
                continue
            if form.kept or is_shared(matmul):
                matmul.decision = gq.DecisionAttr("kept", form.kept or SHARED)
                continue
            adopt(matmul, weight, form, types[form.type], adopted)
            move_channels(matmul, form, moved)
            if form.activation:
                scheme = parse_scheme(form.activation)
                quantize_activations.quantize(matmul, scheme, casts)
        for dense in {weight for weight, _ in adopted}:
            erase_unread(dense)


def adopt(
    matmul: gq.MatmulTOp,
    weight: gq.WeightOp,
    form: Form,
    type_: gq.BlockScaledType,
    adopted: Adopted,
) -> None:
    """Make a matmul read the stored weight, one value for all that do."""
    result = TensorType(type_, gq.tensor_shape(matmul.weight))
    if (weight, result) not in adopted:
        new = gq.WeightOp(weight.key, result)
        new.attributes["origin"] = StringAttr(form.origin)
        new.location = matmul.location
        new.result.name_hint = "wq"
        Rewriter.insert_op(new, InsertPoint.after(weight))
        adopted[weight, result] = new.result
    matmul.operands[1] = adopted[weight, result]


def move_channels(matmul: gq.MatmulTOp, form: Form, moved: Moved) -> None:
    """Make a matmul read its input as the form says, one value for all that read it so."""
    x, how = matmul.x, (form.order, form.factor, form.rotation)
    if not any(how):
        return
    if (x, how) not in moved:
        ops = channel_ops(x, form)
        for op in ops:
            op.location = matmul.location
        ops[-1].results[0].name_hint = x.name_hint
        where = InsertPoint.at_start(x.owner) if isinstance(x.owner, Block) else None
        Rewriter.insert_op(ops, where or InsertPoint.after(x.owner))  # pyright: ignore
        moved[x, how] = ops[-1].results[0]
    matmul.operands[0] = moved[x, how]


def channel_ops(x: SSAValue, form: Form) -> list[Operation]:
    """What gathers, scales or rotates the channels of an input, last dimension."""
    last = len(gq.tensor_shape(x)) - 1
    channels = gq.tensor_shape(x)[last]
    if form.rotation:
        return [gq.RotateChannelsOp(x, int(form.rotation))]
    if form.order:
        order = gq.WeightOp(form.order, TensorType(i64, [channels]))
        return [order, gq.GatherChannelsOp(x, order.result, last)]
    factor = gq.WeightOp(form.factor, TensorType(f32, [channels]))
    return [factor, gq.ScaleChannelsOp(x, factor.result, last)]


def erase_unread(weight: gq.WeightOp) -> None:
    """Erase a dense weight, and transposes of it, that no one reads any more."""
    for use in list(weight.result.uses):
        if isinstance(use.operation, gq.TransposeOp) and not use.operation.result.uses:
            Rewriter.erase_op(use.operation)
    if not weight.result.uses:
        Rewriter.erase_op(weight)
