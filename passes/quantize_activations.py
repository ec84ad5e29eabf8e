"""Quantize the inputs of linears by scheme: a `gq.qcast` that runs with the model."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.passes.helpers import layer_name, matmuls, weight_of
from gqc.schemes import Patterns, Scheme, parse_scheme

Casts = dict[tuple[SSAValue, Scheme, str | None], SSAValue]
"""The quantized form of each activation under each scheme and, if static, its scale's name."""


@dataclass(frozen=True)
class QuantizeActivations(ModulePass):
    """grouped → grouped, for layers with quantized weights whose scheme has an `activation`.

    Layers that read one activation under one scheme share its quantized form. A tensor scale is
    taken from the activation as the model runs, or else, where the scheme is static, from the side
    store: `<layer>.input_scale`.
    """

    name = "quantize-activations"

    schemes: tuple[str, ...]

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        patterns = Patterns(self.schemes)
        casts: Casts = {}
        for matmul in matmuls(op):
            _, scheme = patterns.match(layer_name(matmul)) or (None, "")
            if not isinstance(matmul.weight.owner, gq.QcastOp):
                continue
            activation = parse_scheme(scheme).activation
            if activation is not None and weight_of(matmul.x) is None:  # no stored tensor
                quantize(matmul, activation, casts)


def input_scale(layer: str) -> str:
    """Name in the side store of the calibrated scale of a layer's input.

    A layer that is compiled by itself has no name, and is called as its weight is.
    """
    return "input_scale" if layer in ("", "weight") else f"{layer}.input_scale"


def quantize(matmul: gq.MatmulTOp, scheme: Scheme, casts: Casts) -> None:
    """Make the matmul read its quantized input."""
    x = matmul.x
    static = input_scale(layer_name(matmul)) if scheme.static else None
    if (x, scheme, static) not in casts:
        ops = cast_of(x, scheme, static)
        for op in ops:
            op.location = matmul.location
        where = InsertPoint.at_start(x.owner) if isinstance(x.owner, Block) else None
        Rewriter.insert_op(ops, where or InsertPoint.after(x.owner))  # pyright: ignore
        casts[x, scheme, static] = ops[-1].results[0]
    matmul.operands[0] = casts[x, scheme, static]


def cast_of(x: SSAValue, scheme: Scheme, static: str | None) -> list[Operation]:
    """The operations that quantize an activation, the cast last."""
    type_, ops = scheme.type(len(gq.tensor_shape(x))), []
    if type_.has_tensor_scale:
        scale = (
            gq.TensorScaleOp(x, type_) if static is None else gq.WeightOp(static, gq.TENSOR_SCALE)
        )
        scale.result.name_hint = "x_scale"
        ops.append(scale)
    tensor_scale = ops[0].results[0] if ops else None
    cast = gq.QcastOp(x, scheme.quantizer, scheme.scale_rule, type_, tensor_scale)
    cast.result.name_hint = "xq"
    return [*ops, cast]
