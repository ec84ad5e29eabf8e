"""Meaning of the `tile` dialect on torch tensors: every program of the grid, one after another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xdsl.dialects import arith, math, memref
from xdsl.interpreter import Interpreter, InterpreterFunctions, impl, register_impls

from gqc.dialects import tile
from gqc.formats import packing
from gqc.formats.elements import ELEMENTS

Values = tuple[Any, ...]
PROGRAM = "program_id"
SUM = "sum_of_parts"


def run_kernel(interpreter: Interpreter, kernel: tile.KernelOp, arrays: Sequence[Any]) -> None:
    """Run a kernel on its arguments, of which the last is the one whose tiles programs make.

    An array may be of another shape with the same elements, as where a kernel views its dimensions
    split.
    """
    rows, columns = arrays[-1].shape
    views = []
    for given, array in zip(arrays, kernel.body.block.args, strict=True):
        _, *shape = tile.shape_of(array)
        views.append(given if given.dim() == 1 + len(shape) else given.view(-1, *shape))
    tile_rows, tile_columns = kernel.tile_sizes
    for i in range(-(-rows // tile_rows)):
        for j in range(-(-columns // tile_columns)):
            for part in range(kernel.parts):
                interpreter.set_data(TileFunctions, PROGRAM, (i, j, part))
                interpreter.run_ssacfg_region(kernel.body, tuple(views), kernel.sym_name.data)


def window(array: Any, shape: Sequence[int], offsets: Sequence[int]) -> tuple[slice | int, ...]:
    """The part of a tile's window that lies inside an array, leading dimensions at one place."""
    leading = len(offsets) - len(shape)
    slices = [
        slice(min(o, limit), min(o + n, limit))
        for o, n, limit in zip(offsets[leading:], shape, array.shape[leading:], strict=True)
    ]
    return (*offsets[:leading], *slices)


@register_impls
class TileFunctions(InterpreterFunctions):
    @impl(tile.ProgramIdOp)
    def run_program_id(
        self, interpreter: Interpreter, op: tile.ProgramIdOp, args: Values
    ) -> Values:
        program = interpreter.get_data(TileFunctions, PROGRAM, lambda: (0, 0, 0))
        return (program[op.axis.value.data],)

    @impl(tile.AddPartsOp)
    def run_add_parts(self, interpreter: Interpreter, op: tile.AddPartsOp, args: Values) -> Values:
        """The sum so far: programs of a tile run in order, and the last one's results stay."""
        (total,) = args
        _, _, part = interpreter.get_data(TileFunctions, PROGRAM, lambda: (0, 0, 0))
        if part > 0:
            total = interpreter.get_data(TileFunctions, SUM, lambda: 0) + total
        interpreter.set_data(TileFunctions, SUM, total)
        return (total,)

    @impl(arith.MuliOp)
    def run_muli(self, interpreter: Interpreter, op: arith.MuliOp, args: Values) -> Values:
        return (args[0] * args[1],)

    @impl(arith.DivUIOp)
    def run_divui(self, interpreter: Interpreter, op: arith.DivUIOp, args: Values) -> Values:
        return (args[0] // args[1],)

    @impl(arith.RemUIOp)
    def run_remui(self, interpreter: Interpreter, op: arith.RemUIOp, args: Values) -> Values:
        return (args[0] % args[1],)

    @impl(arith.MinUIOp)
    def run_minui(self, interpreter: Interpreter, op: arith.MinUIOp, args: Values) -> Values:
        return (min(args),)

    @impl(memref.DimOp)
    def run_dim(self, interpreter: Interpreter, op: memref.DimOp, args: Values) -> Values:
        array, axis = args
        return (array.shape[axis],)

    @impl(memref.LoadOp)
    def run_memref_load(self, interpreter: Interpreter, op: memref.LoadOp, args: Values) -> Values:
        array, *indices = args
        return (array[tuple(indices)].item(),)

    @impl(arith.IndexCastOp)
    def run_index_cast(
        self, interpreter: Interpreter, op: arith.IndexCastOp, args: Values
    ) -> Values:
        return args

    @impl(memref.AllocaOp)
    def run_alloca(self, interpreter: Interpreter, op: memref.AllocaOp, args: Values) -> Values:
        import torch

        from gqc.dialects.torch_types import DTYPES

        dtype = DTYPES[tile.element_of(op.memref)]
        fill = torch.nan if dtype.is_floating_point else torch.iinfo(dtype).max
        return (torch.full(tile.shape_of(op.memref), fill, dtype=dtype),)

    @impl(arith.DivfOp)
    def run_divf(self, interpreter: Interpreter, op: arith.DivfOp, args: Values) -> Values:
        return (args[0] / args[1],)

    @impl(math.ExpOp)
    def run_exp(self, interpreter: Interpreter, op: math.ExpOp, args: Values) -> Values:
        return (args[0].exp(),)

    @impl(math.ErfOp)
    def run_erf(self, interpreter: Interpreter, op: math.ErfOp, args: Values) -> Values:
        return (args[0].erf(),)

    @impl(math.TanhOp)
    def run_tanh(self, interpreter: Interpreter, op: math.TanhOp, args: Values) -> Values:
        return (args[0].tanh(),)

    @impl(arith.MaximumfOp)
    def run_maximumf(self, interpreter: Interpreter, op: arith.MaximumfOp, args: Values) -> Values:
        import torch

        return (torch.maximum(*args),)

    @impl(math.RsqrtOp)
    def run_rsqrt(self, interpreter: Interpreter, op: math.RsqrtOp, args: Values) -> Values:
        return (args[0].rsqrt(),)

    @impl(tile.FullOp)
    def run_full(self, interpreter: Interpreter, op: tile.FullOp, args: Values) -> Values:
        import torch

        from gqc.dialects.torch_types import DTYPES

        dtype = DTYPES[tile.element_of(op.result)]
        return (torch.full(tile.shape_of(op.result), op.value.value.data, dtype=dtype),)

    @impl(tile.LoadOp)
    def run_load(self, interpreter: Interpreter, op: tile.LoadOp, args: Values) -> Values:
        array, *offsets = args
        shape = tile.shape_of(op.result)
        inside = array[window(array, shape, offsets)]
        result = array.new_zeros(shape)
        result[tuple(slice(0, n) for n in inside.shape)] = inside
        return (result,)

    @impl(tile.StoreOp)
    def run_store(self, interpreter: Interpreter, op: tile.StoreOp, args: Values) -> Values:
        value, array, *offsets = args
        inside = array[window(array, value.shape, offsets)]
        inside.copy_(value[tuple(slice(0, n) for n in inside.shape)])
        return ()

    @impl(tile.UnpackOp)
    def run_unpack(self, interpreter: Interpreter, op: tile.UnpackOp, args: Values) -> Values:
        element, axis = ELEMENTS[str(tile.element_of(op.result))], op.axis.value.data
        planes = [plane.movedim(axis, -1) for plane in args]
        signed, order = element.is_signed_integer, op.order_name
        return (packing.unpack(planes, element.bits, signed, order).movedim(-1, axis),)

    @impl(tile.CastOp)
    def run_cast(self, interpreter: Interpreter, op: tile.CastOp, args: Values) -> Values:
        import torch

        from gqc.dialects.torch_types import DTYPES

        dtype = DTYPES[tile.element_of(op.result)]
        source = ELEMENTS.get(str(tile.element_of(op.source)))
        if source is None or source.is_integer or args[0].is_floating_point():
            return (args[0].to(dtype),)
        return (torch.tensor(source.values, dtype=dtype)[args[0].long()],)

    @impl(tile.RepeatOp)
    def run_repeat(self, interpreter: Interpreter, op: tile.RepeatOp, args: Values) -> Values:
        return (args[0].repeat_interleave(op.times.value.data, op.axis.value.data),)

    @impl(tile.BroadcastOp)
    def run_broadcast(self, interpreter: Interpreter, op: tile.BroadcastOp, args: Values) -> Values:
        return (args[0].broadcast_to(tile.shape_of(op.result)),)

    @impl(tile.TransposeOp)
    def run_transpose(self, interpreter: Interpreter, op: tile.TransposeOp, args: Values) -> Values:
        return (args[0].t(),)

    @impl(tile.TakePanelsOp)
    def run_take_panels(
        self, interpreter: Interpreter, op: tile.TakePanelsOp, args: Values
    ) -> Values:
        panels = args[0].unflatten(1, (-1, 2, op.panel.value.data))
        return (panels[:, :, op.part.value.data].flatten(1),)

    @impl(tile.SumOp)
    def run_sum(self, interpreter: Interpreter, op: tile.SumOp, args: Values) -> Values:
        from gqc.dialects.torch_types import DTYPES

        values = args[0].to(DTYPES[tile.element_of(op.result)])
        return (values.sum(op.axis.value.data, keepdim=True, dtype=values.dtype),)

    @impl(tile.MaxOp)
    def run_max(self, interpreter: Interpreter, op: tile.MaxOp, args: Values) -> Values:
        return (args[0].amax(op.axis.value.data, keepdim=True),)

    @impl(tile.DotOp)
    def run_dot(self, interpreter: Interpreter, op: tile.DotOp, args: Values) -> Values:
        acc, lhs, rhs = args
        return (acc + lhs.to(acc.dtype) @ rhs.to(acc.dtype),)
