"""Legalize for the target: say how each quantized matmul will be multiplied, and why."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, bf16, f16, f32
from xdsl.ir import Attribute, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.legality import Legality, legality
from gqc.passes.helpers import count, layer_name, matmuls, weight_of
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
        decisions = {m: decide(m, target) for m in quantized}
        refused = {m: d for m, d in decisions.items() if d.kind == "refused"}
        if refused:
            problems = (f"  {layer_name(m)}: {d.reason}" for m, d in refused.items())
            lines = list(dict.fromkeys(problems))  # a layer may be called twice
            what = f"target {target.name} cannot do {count(len(lines), 'layer')}:"
            raise GqcError("\n".join([what, *lines]))
        decoded: Decoded = {}
        for matmul, decision in decisions.items():
            attribute = gq.DecisionAttr(decision.kind, decision.reason)
            if decision.decoded is None:
                matmul.decision = attribute
            else:
                dequantize(matmul, FLOATS[decision.decoded], attribute, decoded)


def decide(matmul: gq.MatmulTOp, target: Target) -> Legality:
    """What the target makes of a matmul on a quantized weight."""
    weight = gq.block_scaled(matmul.weight)
    assert weight is not None
    shape = gq.tensor_shape(matmul.weight)
    x, activation = gq.block_scaled(matmul.x), str(activation_type(matmul))
    return legality(target, activation, x, weight, shape)


def activation_type(matmul: gq.MatmulTOp) -> Attribute:
    """Type of the activations of a matmul, before they are quantized."""
    cast = matmul.x.owner
    return gq.element_type(cast.source if isinstance(cast, gq.QcastOp) else matmul.x)


FLOATS = {str(type_): type_ for type_ in (f16, bf16, f32)}

Decoded = dict[tuple[SSAValue, Attribute], gq.DcastOp]
"""The cast of each activation to each float type."""


def dequantize(
    matmul: gq.MatmulTOp, element: Attribute, decision: gq.DecisionAttr, decoded: Decoded
) -> None:
    """Have a matmul read floats: both operands dequantized before it, with the decision.

    They get the float type `element`; tensor scales stay apart.
    """
    inputs, alphas = matmul.x, []
    if gq.block_scaled(inputs) is not None:
        if (inputs, element) not in decoded:
            assert isinstance(inputs.owner, Operation)
            decoded[inputs, element] = dcast(inputs, element, InsertPoint.after(inputs.owner))
        inputs, alphas = results(decoded[inputs, element])
    cast = dcast(matmul.weight, element, InsertPoint.before(matmul))
    cast.location = matmul.location
    values, scales = results(cast)
    types = (matmul.bias, matmul.result.type, decision)
    new = gq.MatmulTOp(inputs, values, *types, alphas=[*alphas, *scales])
    new.attributes.update(matmul.attributes)
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
    return cast.result, [] if cast.tensor_scale is None else [cast.tensor_scale]
