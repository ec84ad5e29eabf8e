"""Meaning of the `gq` dialect on torch tensors.

A value of block-scaled type is a `BlockScaled`; every other tensor is a torch tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from xdsl.dialects.builtin import TensorType
from xdsl.interpreter import Interpreter, InterpreterFunctions, impl, register_impls

from gqc.dialects import gq, tile
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.layouts import LAYOUTS
from gqc.targets import ANY

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled

Values = tuple[Any, ...]


@register_impls
class GqFunctions(InterpreterFunctions):
    def __init__(self, weights: Mapping[str, torch.Tensor | BlockScaled]):
        self.weights = weights

    @impl(gq.WeightOp)
    def run_weight(self, interpreter: Interpreter, op: gq.WeightOp, args: Values) -> Values:
        return (self.weights[op.key],)

    @impl(gq.QcastOp)
    def run_qcast(self, interpreter: Interpreter, op: gq.QcastOp, args: Values) -> Values:
        from gqc.quantizers import QUANTIZERS

        type_ = gq.block_scaled(op.result)
        assert type_ is not None
        return (QUANTIZERS[op.quantizer.data](args[0], type_, op.scale_rule.data),)

    @impl(gq.DcastOp)
    def run_dcast(self, interpreter: Interpreter, op: gq.DcastOp, args: Values) -> Values:
        from gqc.dialects.torch_types import DTYPES

        return (args[0].dequantize().to(DTYPES[gq.element_type(op.result)]),)

    @impl(gq.TransposeOp)
    def run_transpose(self, interpreter: Interpreter, op: gq.TransposeOp, args: Values) -> Values:
        return (args[0].t(),)

    @impl(gq.MatmulTOp)
    def run_matmul_t(self, interpreter: Interpreter, op: gq.MatmulTOp, args: Values) -> Values:
        import torch

        x, weight, *bias = args
        if not isinstance(weight, torch.Tensor):
            weight = weight.dequantize().to(x.dtype)
        return (torch.nn.functional.linear(x, weight, *bias),)

    @impl(gq.PackOp)
    def run_pack(self, interpreter: Interpreter, op: gq.PackOp, args: Values) -> Values:
        layout = LAYOUTS[op.layout.kind.data]
        return tuple(layout.pack(args[0], op.layout.lanes.data))

    @impl(gq.UnpackOp)
    def run_unpack(self, interpreter: Interpreter, op: gq.UnpackOp, args: Values) -> Values:
        layout, type_ = LAYOUTS[op.layout.kind.data], gq.block_scaled(op.weight)
        assert type_ is not None
        return (layout.unpack(args, type_, gq.tensor_shape(op.weight)),)

    @impl(gq.LaunchOp)
    def run_launch(self, interpreter: Interpreter, op: gq.LaunchOp, args: Values) -> Values:
        assert isinstance(op.result.type, TensorType)
        x, rest = args[0], args[1:]
        y = x.new_empty(*x.shape[:-1], op.result.type.get_shape()[-1])
        rows = x[..., 0].numel()
        name = next(k for most, k in op.buckets if rows <= most or most == ANY)
        kernel = interpreter.get_op_for_symbol(name)
        assert isinstance(kernel, tile.KernelOp)
        flat_x, flat_y = (t.reshape(rows, t.shape[-1]) for t in (x, y))
        run_kernel(interpreter, kernel, (flat_x, *rest, flat_y))
        return (flat_y.reshape(y.shape),)
