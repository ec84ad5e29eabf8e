"""Epilogues: what a kernel computes of the tiles that it would store, and stores instead.

A rewrite of the `tile.store` of any kernel's result. All is computed in float32 and rounded once,
where it is stored: the rounding of the matmul's result, and of what torch makes of it in steps,
does not take place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from xdsl.builder import Builder
from xdsl.dialects import arith
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    DenseArrayBase,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    TensorType,
    VectorType,
    f32,
    i64,
)
from xdsl.ir import Block, Region, SSAValue
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq, tile
from gqc.dialects.fx import CallOp, call
from gqc.passes.kernel_builder import building, cast, named
from gqc.passes.producers import COPIES, tile_of


@dataclass(frozen=True)
class Epilogue:
    """Calls, in order, that compute one value of a matmul's result, or of its two halves.

    heads: the result [..., N], or its halves, whose columns then alternate in panels of `panel`, or
    a `view` of the result in which the same rows lie in other leading dimensions.
    inputs: the other tensors that the calls read, [..., N] of a head, or [N].
    """

    heads: tuple[SSAValue, ...]
    ops: tuple[CallOp, ...]
    inputs: tuple[SSAValue, ...]
    panel: int | None = None
    view: CallOp | None = None

    @property
    def result(self) -> SSAValue:
        return self.ops[-1].results[0]

    def body(self) -> Region:
        """The same calls as a function of the matmul's result and the inputs, for `gq.launch`."""
        product = self.heads[0]
        if self.panel is not None:
            assert isinstance(product.owner, CallOp)
            product = product.owner.operands[0]
        block = Block(arg_types=[product.type, *(value.type for value in self.inputs)])
        for argument, value in zip(block.args, (product, *self.inputs), strict=True):
            argument.name_hint = value.name_hint
        heads = [block.args[0]] if self.panel is None else take_halves(block, self.panel)
        mapping = dict(zip(self.inputs, block.args[1:], strict=True))
        mapping |= dict(zip(self.heads, heads, strict=True))
        block.add_ops([op.clone(mapping) for op in self.ops])
        block.add_op(gq.YieldOp(mapping[self.result]))
        return Region(block)

    @property
    def words(self) -> list[str]:
        """The functions that are called: `silu`, `mul`."""
        callees = [op.callee.data for op in self.ops]
        return [c.split(".")[1] for c in callees if c not in COPIES]

    @property
    def key(self) -> tuple:
        """What tells epilogues apart."""
        numbers: dict[SSAValue, int] = {}
        for value in (*self.heads, *self.inputs, *(op.results[0] for op in self.ops)):
            numbers[value] = len(numbers)
        calls = [
            (op.callee, op.args, op.kwargs, *map(numbers.__getitem__, op.operands))
            for op in self.ops
        ]
        types = (*(value.type for value in self.inputs), self.result.type)
        return len(self.heads), self.panel, types, tuple(calls)


def take_halves(block: Block, panel: int) -> list[SSAValue]:
    """Add to a block what takes its first argument, whose columns alternate in panels, apart."""
    product = block.args[0]
    *rows, columns = gq.tensor_shape(product)
    count, element = columns // (2 * panel), gq.element_type(product)

    def then(callee: str, *args: Any, shape: Sequence[int]) -> SSAValue:
        op = call(callee, args, {}, [TensorType(element, [*rows, *shape])])
        block.add_op(op)
        return op.results[0]

    size = (count, 2, panel)
    panels = then("aten.unflatten.int", product, -1, list(size), shape=size)
    halves = [then("aten.select.int", panels, -2, half, shape=(count, panel)) for half in (0, 1)]
    flat = "aten.flatten.using_ints"
    return [then(flat, half, -2, -1, shape=(columns // 2,)) for half in halves]


def stores_of(kernel: tile.KernelOp) -> list[tile.StoreOp]:
    """The stores of tiles of a kernel's result; empty if the kernel uses it otherwise too."""
    users = [use.operation for use in kernel.body.block.args[-1].uses]
    stores = [op for op in users if isinstance(op, tile.StoreOp)]
    whole = all(len(tile.shape_of(op.value)) == 2 for op in stores)
    return stores if whole and len(stores) == len(users) else []


def with_epilogue(
    kernel: tile.KernelOp, name: str, epilogue: Epilogue, position: int
) -> tile.KernelOp:
    """A copy of a kernel with an epilogue, whose inputs become its arguments from `position` on."""
    new = kernel.clone()
    new.properties["sym_name"] = StringAttr(name)
    rows, columns = kernel.tile_sizes
    sizes = (rows, columns // len(epilogue.heads))
    new.properties["tile"] = DenseArrayBase.from_list(i64, sizes)
    if isinstance(summary := new.attributes.get("summary"), StringAttr):
        new.attributes["summary"] = StringAttr(f"{summary.data}; then {', '.join(epilogue.words)}")
    block, stores = new.body.block, stores_of(new)
    arrays = []
    for number, value in enumerate(epilogue.inputs):
        arrays.append(block.insert_arg(array_type(value), position + number))
        arrays[-1].name_hint = f"other{number}"
    old = block.args[-1]
    result = block.insert_arg(array_type(epilogue.result), len(block.args))
    result.name_hint = old.name_hint
    for store in stores:
        with building(Builder(InsertPoint.before(store))):
            rewrite(store, epilogue, arrays, result)
        source = store.value.owner
        Rewriter.erase_op(store)
        if isinstance(source, tile.CastOp) and not source.result.uses:
            Rewriter.erase_op(source)
    block.erase_arg(old)
    return new


def array_type(value: SSAValue) -> MemRefType:
    """The array of a tensor in a kernel: [M, N] of [..., N], or [N]."""
    *rows, columns = gq.tensor_shape(value)
    return MemRefType(gq.element_type(value), [*([DYNAMIC_INDEX] if rows else []), columns])


def rewrite(
    store: tile.StoreOp, epilogue: Epilogue, arrays: list[SSAValue], result: SSAValue
) -> None:
    """Store the epilogue of what a store would store."""
    m, n = store.offsets
    source = store.value.owner
    acc = store.value
    if isinstance(source, tile.CastOp) and tile.element_of(source.source) == f32:
        acc = source.source  # as it was before it was rounded
    acc = cast(acc, f32, "acc")
    heads = [acc]
    if epilogue.panel is not None:
        parts = range(len(epilogue.heads))
        heads = [named(tile.TakePanelsOp(acc, epilogue.panel, part), "half") for part in parts]
        two = named(arith.ConstantOp(IntegerAttr(len(heads), IndexType())), "c2")
        n = named(arith.DivUIOp(n, two), "n")
    shape = tile.shape_of(heads[0])
    tiles = dict(zip(epilogue.heads, heads, strict=True))
    for value, array in zip(epilogue.inputs, arrays, strict=True):
        tiles[value] = load(array, m, n, shape)
    for op in epilogue.ops:
        operands = [tiles[operand] for operand in op.operands]
        tiles[op.results[0]] = tile_of(op, operands, shape)
    value = cast(tiles[epilogue.result], tile.element_of(result), "y_tile")
    tile.StoreOp(value, result, [m, n])


def load(array: SSAValue, m: SSAValue, n: SSAValue, shape: tuple[int, ...]) -> SSAValue:
    """The tile of a tensor [M, N] at a place, or of a vector [N], in float32."""
    vector = len(tile.shape_of(array)) == 1
    type_ = VectorType(tile.element_of(array), shape[1:] if vector else shape)
    name = f"{array.name_hint}_tile"
    return cast(named(tile.LoadOp(array, [n] if vector else [m, n], type_), name), f32, name)
