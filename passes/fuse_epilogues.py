"""Fuse epilogues: what is computed of a matmul's result alone moves into the matmul's kernel."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count

from xdsl.context import Context
from xdsl.dialects.builtin import AnyFloat, IntegerAttr, ModuleOp, TensorType, i64
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq, tile
from gqc.dialects.fx import CallOp
from gqc.passes.epilogue_tiles import Epilogue, stores_of, with_epilogue
from gqc.passes.producers import MEAN, can_produce

LONGEST = 64
"""Calls of an epilogue, at most."""

SPLIT = "aten.split_with_sizes.default"
VIEWS = ("aten.view.default", "aten.reshape.default", "aten._unsafe_view.default")


@dataclass(frozen=True)
class FuseEpilogues(ModulePass):
    """kernels → kernels: activations, residuals and products of a launch's result, in its kernels.

    Calls of `gqc.passes.producers` are taken that work on elements, as many as lead to one value
    and leave no other for anyone else to read. What else they read, of the result's shape or [N],
    becomes an input of the launch. The two halves of a merged matmul, as gate and up, meet in one
    tile: the rows of their weights alternate in panels (`gq.concat`), and so do its columns.
    """

    name = "fuse-epilogues"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        fusion = Fusion({k.sym_name.data: k for k in op.ops if isinstance(k, tile.KernelOp)})
        for launch in [o for o in op.walk() if isinstance(o, gq.LaunchOp)]:
            if len(launch.parts) and len(launch.outputs) == 1:
                fusion.fuse(launch)
        op.body.block.add_ops(fusion.made.values())
        erase_unused_kernels(op)


def erase_unused_kernels(module: ModuleOp) -> None:
    """Erase kernels that nothing launches any more."""
    launches = [op for op in module.walk() if isinstance(op, gq.LaunchOp)]
    used = {name for launch in launches for _, name in launch.buckets}
    for kernel in [op for op in module.ops if isinstance(op, tile.KernelOp)]:
        if kernel.sym_name.data not in used:
            Rewriter.erase_op(kernel)


@dataclass
class Fusion:
    """The kernels of one module by name, and those that are made of them."""

    kernels: dict[str, tile.KernelOp]
    made: dict[str, tile.KernelOp] = field(default_factory=dict)
    names: dict[tuple, str] = field(default_factory=dict)
    """Of kernels that were made, by kernel and epilogue."""

    def fuse(self, launch: gq.LaunchOp) -> None:
        """Fuse what can be with one launch."""
        kernels = [self.kernels[name] for _, name in launch.buckets]
        if not all(map(stores_of, kernels)) or (epilogue := epilogue_of(launch, kernels)) is None:
            return
        names = [self.kernel(kernel, epilogue, len(launch.inputs)) for kernel in kernels]
        rows = [most for most, _ in launch.buckets]
        inputs = [*launch.inputs, *epilogue.inputs]
        shape = (*gq.tensor_shape(launch.outputs[0])[:-1], gq.tensor_shape(epilogue.result)[-1])
        types = [TensorType(gq.element_type(epilogue.result), shape)]
        body = epilogue.body()
        new = gq.LaunchOp(names, rows, inputs, launch.parts, launch.bias, types, body)
        new.attributes.update(launch.attributes)
        if epilogue.panel is not None:
            alternate(launch, epilogue.panel)
        replace(launch, epilogue, new)

    def kernel(self, kernel: tile.KernelOp, epilogue: Epilogue, position: int) -> str:
        """Name of a kernel with an epilogue, which is made the first time."""
        key = (kernel.sym_name.data, position, epilogue.key)
        if key not in self.names:
            name = self.free_name(kernel, epilogue)
            self.made[name] = with_epilogue(kernel, name, epilogue, position)
            self.names[key] = name
        return self.names[key]

    def free_name(self, kernel: tile.KernelOp, epilogue: Epilogue) -> str:
        """A name with the functions that are fused, and a number if these tell too little."""
        stem, _, bucket = kernel.sym_name.data.rpartition("_")
        stem = "_".join([stem, *epilogue.words])
        names = (
            f"{stem}_{number}_{bucket}" if number else f"{stem}_{bucket}" for number in count()
        )
        return next(name for name in names if name not in self.kernels | self.made)


def replace(launch: gq.LaunchOp, epilogue: Epilogue, new: gq.LaunchOp) -> None:
    """Replace a launch and its epilogue by another launch, a view after it if need be."""
    ops: list[Operation] = [new]
    if (view := epilogue.view) is not None:
        operands = [new.outputs[0], *view.operands[1:]]
        types = [epilogue.result.type]
        ops.append(CallOp(view.callee.data, operands, view.args, view.kwargs, types))
    for op in ops:
        op.location, op.results[0].name_hint = launch.location, epilogue.result.name_hint
    Rewriter.insert_op(ops, InsertPoint.before(epilogue.ops[-1]))
    epilogue.result.replace_all_uses_with(ops[-1].results[0])
    heads = [head.owner for head in epilogue.heads[:1] if head.owner is not launch]
    for dead in (*reversed(epilogue.ops), *heads, launch):
        assert isinstance(dead, Operation)
        Rewriter.erase_op(dead)


def alternate(launch: gq.LaunchOp, panel: int) -> None:
    """Put the rows of a launch's weight, and its bias, together in panels."""
    pack = launch.parts[0].owner
    assert isinstance(pack, gq.PackOp)
    for value in (pack.weight, launch.bias):
        if value is not None:
            assert isinstance(value.owner, gq.ConcatOp)
            value.owner.panel = IntegerAttr(panel, i64)


# What is fused


def epilogue_of(launch: gq.LaunchOp, kernels: list[tile.KernelOp]) -> Epilogue | None:
    """The longest epilogue of a launch's result, or None."""
    (result,) = launch.outputs
    heads, panel, view = (result,), None, None
    if (split := halves(launch)) is not None:
        heads, panel = tuple(split.results), panel_of(split, launch, kernels)
        if panel is None:
            return None
    elif (view := row_view(result)) is not None:
        heads = (view.results[0],)
    if not (ops := fusable(launch, heads)):
        return None
    known = {*heads, *(op.results[0] for op in ops)}
    read = dict.fromkeys(value for op in ops for value in op.operands)
    inputs = tuple(value for value in read if value not in known)
    epilogue = Epilogue(heads, ops, inputs, panel, view)
    return epilogue if epilogue.words else None


def fusable(launch: gq.LaunchOp, heads: tuple[SSAValue, ...]) -> tuple[CallOp, ...]:
    """The most calls, in order, that compute one value from the heads, and no other that anyone
    else reads; nor do they leave the heads to others."""
    shape = gq.tensor_shape(heads[0])
    inside, chosen, best = dict.fromkeys(heads), list[CallOp](), 0
    for op in in_order(launch, reachable(heads, shape)):
        others = [value for value in op.operands if value not in inside]
        loadable = all(gq.tensor_shape(value) in (shape, shape[-1:]) for value in others)
        if not loadable or len(others) == len(op.operands):
            continue
        chosen.append(op)
        inside[op.results[0]] = None
        if live(inside, chosen) == [op.results[0]] and not widens(heads[0], op.results[0]):
            best = len(chosen)
    return tuple(chosen[:best])


def widens(head: SSAValue, result: SSAValue) -> bool:
    """Whether a result takes more memory than the matmul's own."""
    old, new = (gq.element_type(value) for value in (head, result))
    assert isinstance(old, AnyFloat) and isinstance(new, AnyFloat)
    return new.bitwidth > old.bitwidth


def live(inside: Iterable[SSAValue], ops: list[CallOp]) -> list[SSAValue]:
    """Values that others than some operations read."""
    return [v for v in inside if any(use.operation not in ops for use in v.uses)]


def reachable(heads: Iterable[SSAValue], shape: tuple[int, ...]) -> set[Operation]:
    """Calls on elements that read values, or what other such calls make of them."""
    found: set[Operation] = set()
    pending = [use.operation for value in heads for use in value.uses]
    while pending and len(found) < LONGEST:
        op = pending.pop(0)
        if op not in found and isinstance(op, CallOp) and fits(op, shape):
            found.add(op)
            pending += [use.operation for use in op.results[0].uses]
    return found


def fits(op: CallOp, shape: tuple[int, ...]) -> bool:
    """Whether a kernel can do a call on elements of tensors of a shape."""
    if not can_produce(op) or op.callee.data == MEAN:
        return False
    return gq.tensor_shape(op.results[0]) == shape


def in_order(start: Operation, ops: set[Operation]) -> Iterable[CallOp]:
    """Operations of one block in order, all after a first one."""
    left, op = len([op for op in ops if op.parent is start.parent]), start.next_op
    while left and op is not None:
        if op in ops and isinstance(op, CallOp):
            left -= 1
            yield op
        op = op.next_op


def halves(launch: gq.LaunchOp) -> CallOp | None:
    """The call that splits a merged matmul's result, which no one else reads, into equal halves."""
    (result,) = launch.outputs
    readers = [use.operation for use in result.uses]
    match readers:
        case [CallOp() as split] if split.callee.data == SPLIT and len(split.results) == 2:
            return split if split.results[0].type == split.results[1].type else None
    return None


def row_view(result: SSAValue) -> CallOp | None:
    """The call that views a result [..., N] as another [..., N], if no one else reads it."""
    match [use.operation for use in result.uses]:
        case [CallOp() as view] if view.callee.data in VIEWS and view.operands[0] is result:
            same = gq.tensor_shape(view.results[0])[-1] == gq.tensor_shape(result)[-1]
            return view if same else None
    return None


def panel_of(split: CallOp, launch: gq.LaunchOp, kernels: list[tile.KernelOp]) -> int | None:
    """Columns of a panel: those of half of the narrowest tile, so that each holds pairs; 1 where
    the layout lets neighbouring rows alternate. None if the weight was not merged for this launch
    alone, or its halves are no whole panels."""
    pack = launch.parts[0].owner
    if not isinstance(pack, gq.PackOp) or not isinstance(pack.weight.owner, gq.ConcatOp):
        return None
    alone = [pack.weight, *([] if launch.bias is None else [launch.bias])]
    if not all(value.has_one_use() for value in (*alone, *pack.parts)):
        return None
    widths = [tile.shape_of(store.value)[1] for k in kernels for store in stores_of(k)]
    panel = math.gcd(*widths) // 2 if pack.layout.lanes.data > 1 else 1
    return panel if gq.tensor_shape(split.results[0])[-1] % panel == 0 else None
