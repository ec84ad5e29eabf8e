"""Legalize for the target: say how each quantized matmul will be multiplied, and why."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.formats.elements import SCALES
from gqc.passes.helpers import count, layer_name, matmuls
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
        for matmul in quantized:
            dequantize(matmul, target)


def problem(matmul: gq.MatmulTOp, target: Target) -> str | None:
    """Why the target cannot do a matmul, with the remedy; None if it can."""
    type_, activation = gq.block_scaled(matmul.weight), str(gq.element_type(matmul.x))
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


def dequantize(matmul: gq.MatmulTOp, target: Target) -> None:
    """Put the explicit dequantization before the matmul, with the reason."""
    type_, activation = gq.block_scaled(matmul.weight), gq.element_type(matmul.x)
    assert type_ is not None
    cast = gq.DcastOp(matmul.weight, activation)
    cast.location = matmul.location
    cast.result.name_hint = "w"
    Rewriter.insert_op(cast, InsertPoint.before(matmul))
    matmul.operands[1] = cast.result
    matmul.decision = gq.DecisionAttr(
        "emulated",
        f"{target.name} multiplies no {type_.element}: decoded in registers, "
        f"then {target.units[str(activation)]} in {activation}",
    )
