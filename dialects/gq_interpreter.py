"""Meaning of the `gq` dialect on torch tensors.

A value of block-scaled type is a `BlockScaled`; every other tensor is a torch tensor.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import replace
from math import prod
from typing import TYPE_CHECKING, Any

from xdsl.interpreter import (
    Interpreter,
    InterpreterFunctions,
    ReturnedValues,
    impl,
    impl_terminator,
    register_impls,
)

from gqc.dialects import gq, tile
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.byte_layouts import sized
from gqc.targets import ANY

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled

Values = tuple[Any, ...]


@register_impls
class GqFunctions(InterpreterFunctions):
    """`weights` is the side store; what is materialized is put into it."""

    def __init__(self, weights: MutableMapping[str, torch.Tensor | BlockScaled]):
        self.weights = weights

    @impl(gq.WeightOp)
    def run_weight(self, interpreter: Interpreter, op: gq.WeightOp, args: Values) -> Values:
        return (self.weights[op.key],)

    @impl(gq.MaterializeOp)
    def run_materialize(
        self, interpreter: Interpreter, op: gq.MaterializeOp, args: Values
    ) -> Values:
        return interpreter.run_ssacfg_region(op.body, (), op.name)

    @impl(gq.StoreOp)
    def run_store(self, interpreter: Interpreter, op: gq.StoreOp, args: Values) -> Values:
        self.weights.update(zip(op.keys, args, strict=True))
        return ()

    @impl(gq.QcastOp)
    def run_qcast(self, interpreter: Interpreter, op: gq.QcastOp, args: Values) -> Values:
        from gqc.quantizers import QUANTIZERS

        type_ = gq.block_scaled(op.result)
        assert type_ is not None
        source, *tensor_scale = args
        return (QUANTIZERS[op.quantizer.data](source, type_, op.scale_rule.data, *tensor_scale),)

    @impl(gq.TensorScaleOp)
    def run_tensor_scale(
        self, interpreter: Interpreter, op: gq.TensorScaleOp, args: Values
    ) -> Values:
        from gqc.formats.microscaling import nvfp4_tensor_scale

        return (nvfp4_tensor_scale(args[0].float().abs(), op.format.format).reshape(1),)

    @impl(gq.DcastOp)
    def run_dcast(self, interpreter: Interpreter, op: gq.DcastOp, args: Values) -> Values:
        from gqc.dialects.torch_types import DTYPES

        dtype, tensor_scale = DTYPES[gq.element_type(op.result)], args[0].tensor_scale
        values = replace(args[0], tensor_scale=None).dequantize().to(dtype)
        return (values,) if op.tensor_scale is None else (values, tensor_scale.reshape(1))

    @impl(gq.TransposeOp)
    def run_transpose(self, interpreter: Interpreter, op: gq.TransposeOp, args: Values) -> Values:
        return (args[0].t(),)

    @impl(gq.ScaleChannelsOp)
    def run_scale(self, interpreter: Interpreter, op: gq.ScaleChannelsOp, args: Values) -> Values:
        import torch

        x, factor = args
        factor = factor.reshape(-1, *[1] * (x.ndim - 1 - op.axis))
        offset = op.offset.value.data if op.offset is not None else 0.0
        wide = x.to(torch.promote_types(x.dtype, factor.dtype)) + offset
        y = wide / factor if op.inverse is not None else wide * factor
        return ((y - offset).to(x.dtype),)

    @impl(gq.GatherChannelsOp)
    def run_gather(self, interpreter: Interpreter, op: gq.GatherChannelsOp, args: Values) -> Values:
        source, order = args
        return (source.index_select(op.axis, order),)

    @impl(gq.RotateChannelsOp)
    def run_rotate(self, interpreter: Interpreter, op: gq.RotateChannelsOp, args: Values) -> Values:
        from gqc.formats.rotation import rotate

        return (rotate(args[0], op.block.value.data),)

    @impl(gq.ConcatOp)
    def run_concat(self, interpreter: Interpreter, op: gq.ConcatOp, args: Values) -> Values:
        from gqc.formats.concat import concat

        return (concat(args, None if op.panel is None else op.panel.value.data),)

    @impl(gq.MatmulTOp)
    def run_matmul_t(self, interpreter: Interpreter, op: gq.MatmulTOp, args: Values) -> Values:
        import torch

        from gqc.dialects.torch_types import DTYPES

        x, weight, *rest = args
        dtype = DTYPES[gq.element_type(op.result)]
        decoded = gq.element_type(op.x) != gq.element_type(op.result)
        inner = torch.float32 if op.alphas or decoded else dtype
        x, weight = (
            t.to(inner) if isinstance(t, torch.Tensor) else t.dequantize().to(inner)
            for t in (x, weight)
        )
        bias, alphas = (rest[0].to(inner), rest[1:]) if op.bias is not None else (None, rest)
        if not alphas:
            return (torch.nn.functional.linear(x, weight, bias).to(dtype),)
        y = torch.nn.functional.linear(x, weight) * prod(alphas)
        return ((y if bias is None else y + bias).to(dtype),)

    @impl(gq.FusedOp)
    def run_fused(self, interpreter: Interpreter, op: gq.FusedOp, args: Values) -> Values:
        return interpreter.run_ssacfg_region(op.body, args, op.name)

    @impl_terminator(gq.YieldOp)
    def run_yield(
        self, interpreter: Interpreter, op: gq.YieldOp, args: Values
    ) -> tuple[ReturnedValues, Values]:
        return ReturnedValues(args), ()

    @impl(gq.PackOp)
    def run_pack(self, interpreter: Interpreter, op: gq.PackOp, args: Values) -> Values:
        return tuple(op.layout.row.pack(args[0], op.layout.lanes.data))

    @impl(gq.UnpackOp)
    def run_unpack(self, interpreter: Interpreter, op: gq.UnpackOp, args: Values) -> Values:
        type_ = gq.block_scaled(op.weight)
        assert type_ is not None
        return (op.layout.row.unpack(args, type_, gq.tensor_shape(op.weight)),)

    @impl(gq.LaunchOp)
    def run_launch(self, interpreter: Interpreter, op: gq.LaunchOp, args: Values) -> Values:
        from gqc.dialects.torch_types import DTYPES

        outer, rows = args[0].shape[:-1], args[0].shape[:-1].numel()
        name = next(k for most, k in op.buckets if rows <= most or most == ANY)
        kernel = interpreter.get_op_for_symbol(name)
        assert isinstance(kernel, tile.KernelOp)
        arrays = kernel.body.block.args
        inputs = [
            arg.reshape(-1, arg.shape[-1]) if len(tile.shape_of(array)) == 2 else arg
            for arg, array in zip(args, arrays, strict=False)
        ]
        types = [output.type for output in op.outputs]
        shapes = [sized(type_.get_shape(), rows) for type_ in types[:-1]]
        shapes.append((rows, types[-1].get_shape()[-1]))
        outputs = [
            args[0].new_empty(shape, dtype=DTYPES[type_.get_element_type()])
            for shape, type_ in zip(shapes, types, strict=True)
        ]
        run_kernel(interpreter, kernel, (*inputs, *outputs))
        last = outputs[-1].reshape(*outer, outputs[-1].shape[-1])
        return (*outputs[:-1], last)
