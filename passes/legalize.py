"""Legalize for the target: say how each quantized matmul will be multiplied, and why."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.formats.elements import SCALES
from gqc.passes.helpers import count, layer_name, matmuls, weight_of
from gqc.schemes import GROUPS
from gqc.targets import Target, resolve


@dataclass(frozen=True)
class Legalize(ModulePass):
    """grouped → legal: codes the target has no matrix unit for get an explicit `gq.dcast`.

    Raises GqcError that names every layer the target cannot do, with the remedy.
    """

    name = "legalize"

    target: str

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        target = resolve(self.target)
        quantized = [m for m in matmuls(op) if gq.block_scaled(m.weight) is not None]
        problems = [f"  {layer_name(m)}: {p}" for m in quantized if (p := problem(m, target))]
        if problems:
            lines = list(dict.fromkeys(problems))  # a layer may be called twice
            what = f"target {target.name} cannot do {count(len(lines), 'layer')}:"
            raise GqcError("\n".join([what, *lines]))
        decoded: Decoded = {}
        for matmul in quantized:
            dequantize(matmul, target, decoded)


def problem(matmul: gq.MatmulTOp, target: Target) -> str | None:
    """Why the target cannot do a matmul, with the remedy; None if it can."""
    type_, activation = gq.block_scaled(matmul.weight), str(activation_type(matmul))
    assert type_ is not None
    if (unread := undecoded(type_, target)) is not None:
        return unread
    if activation not in target.units:
        return (
            f"its activations are {activation}, the target multiplies "
            f"{' and '.join(target.units)}: convert the model, for example model.bfloat16()"
        )
    rows, columns = type_.block_of(gq.tensor_shape(matmul.weight))
    if rows != 1 or columns not in (*GROUPS, gq.tensor_shape(matmul.weight)[1]):
        return f"no kernel scales blocks of {rows}x{columns}: choose a group of {GROUPS} or row"
    return None


def activation_type(matmul: gq.MatmulTOp) -> Attribute:
    """Type of the activations of a matmul, before they are quantized."""
    cast = matmul.x.owner
    return gq.element_type(cast.source if isinstance(cast, gq.QcastOp) else matmul.x)


def undecoded(type_: gq.BlockScaledType, target: Target) -> str | None:
    """What of a format the target's kernels do not read, with the remedy; None if they read it."""
    element = str(type_.element)
    if element not in target.decodes:
        cpu = " target cpu, or" if element in resolve("cpu").decodes else ""
        what = f"no kernel of {target.name} decodes {element}"
        return f"{what}: choose{cpu} an integer scheme, for example int4_g32"
    known = target.decodes[element]
    unread = [f for f in map(str, (type_.scale, type_.zero)) if f in SCALES and f not in known]
    if unread:
        names = ", ".join(known)
        return f"no kernel reads scales of {unread[0]} with {element}: choose one of {names}"
    return None


Decoded = dict[tuple[SSAValue, Attribute], gq.DcastOp]
"""The cast of each activation to each float type."""


def dequantize(matmul: gq.MatmulTOp, target: Target, decoded: Decoded) -> None:
    """Have a matmul read floats: both operands dequantized before it, with the reason.

    They get the type of the activations as the model has them; tensor scales stay apart.
    """
    activation, weight = activation_type(matmul), gq.block_scaled(matmul.weight)
    x, inputs, alphas = gq.block_scaled(matmul.x), matmul.x, []
    assert weight is not None
    if x is not None:
        if (inputs, activation) not in decoded:
            assert isinstance(inputs.owner, Operation)
            decoded[inputs, activation] = dcast(inputs, activation, InsertPoint.after(inputs.owner))
        inputs, alphas = results(decoded[inputs, activation])
    cast = dcast(matmul.weight, activation, InsertPoint.before(matmul))
    cast.location = matmul.location
    values, scales = results(cast)
    what = f"{x.element} by {weight.element}" if x is not None else str(weight.element)
    reason = (
        f"{target.name} multiplies no {what}: decoded in registers, "
        f"then {target.units[str(activation)]} in {activation}"
    )
    decision = gq.DecisionAttr("emulated", reason)
    types = (matmul.bias, matmul.result.type, decision)
    new = gq.MatmulTOp(inputs, values, *types, alphas=[*alphas, *scales])
    new.location = matmul.location
    new.result.name_hint = matmul.result.name_hint
    Rewriter.replace_op(matmul, new)


def dcast(value: SSAValue, element: Attribute, place: InsertPoint) -> gq.DcastOp:
    """A cast of a block-scaled value, inserted and named."""
    cast = gq.DcastOp(value, element)
    name = "w" if weight_of(value) is not None else "x"
    for result, hint in zip(cast.results, (name, f"{name}_scale"), strict=False):
        result.name_hint = hint
    assert isinstance(value.owner, Operation)
    cast.location = value.owner.location
    Rewriter.insert_op(cast, place)
    return cast


def results(cast: gq.DcastOp) -> tuple[SSAValue, list[SSAValue]]:
    """The values of a cast, and the tensor scale if it has one."""
    values, *tensor_scale = cast.results
    return values, tensor_scale
