"""Meaning of the `tile` operation that quantizes: that of `gqc.quantizers.microscaling`."""

from __future__ import annotations

from typing import Any

from xdsl.dialects.builtin import f32
from xdsl.interpreter import Interpreter, InterpreterFunctions, impl, register_impls

from gqc.dialects import tile
from gqc.dialects.gq_attributes import BlockScaledType

Values = tuple[Any, ...]


@register_impls
class QuantizeFunctions(InterpreterFunctions):
    @impl(tile.QcastOp)
    def run_qcast(self, interpreter: Interpreter, op: tile.QcastOp, args: Values) -> Values:
        from gqc.quantizers import microscaling

        x, *tensor_scale = args
        type_ = BlockScaledType(
            [1, op.block],
            tile.element_of(op.scale),
            tile.element_of(op.codes),
            tensor_scale=f32 if tensor_scale else None,
        )
        scalar = tensor_scale[0].squeeze() if tensor_scale else None
        quantized = microscaling(x, type_, op.rule.data, scalar)
        return quantized.codes, quantized.scale
