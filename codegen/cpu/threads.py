"""The grid of a kernel on threads.

They come from OpenMP through libgomp's ABI (`GOMP_parallel`), that is from the pool that torch
uses. The grid is split into equal runs, columns outermost, so that a thread's weights stay in its
cache while the rows of x pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from xdsl.dialects import llvm
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, UnitAttr, f32, i32, i64
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.codegen.cpu.emitter import PTR, Emitter
from gqc.codegen.cpu.isa import Isa
from gqc.codegen.cpu.tiles import CACHE_LINE
from gqc.dialects import tile
from gqc.dialects.tile import shape_of

SERIAL_WORK = 1 << 17
"""Multiply-adds, or as much other work, below which starting threads costs more than it saves: some
microseconds."""

OPENMP = {
    "GOMP_parallel": llvm.LLVMFunctionType([PTR, PTR, i32, i32]),
    "omp_get_thread_num": llvm.LLVMFunctionType([], i32),
    "omp_get_num_threads": llvm.LLVMFunctionType([], i32),
}
"""What a kernel imports, beside the `memset` that LLVM makes of loops."""


def function(name: str, inputs: Sequence[Attribute]) -> llvm.FuncOp:
    """A function without a result; what its pointers reach does not overlap."""
    noalias = DictionaryAttr({"llvm.noalias": UnitAttr()})
    return llvm.FuncOp(
        name,
        llvm.LLVMFunctionType(inputs),
        llvm.LinkageAttr("external"),
        body=Region(Block(arg_types=inputs)),
        other_props={
            "arg_attrs": ArrayAttr(noalias if t == PTR else DictionaryAttr({}) for t in inputs)
        },
    )


def pointers_of(kernel: tile.KernelOp) -> int:
    """Pointers that programs are given: the kernel's arrays, and the sums of parts if there are."""
    return len(kernel.body.block.args) + (kernel.parts > 1)


def grid_columns(kernel: tile.KernelOp) -> int:
    return -(-shape_of(kernel.body.block.args[-1])[1] // kernel.tile_sizes[1])


def row_tiles(kernel: tile.KernelOp, e: Emitter, size: SSAValue) -> SSAValue:
    rows = kernel.tile_sizes[0]
    if rows == 1:
        return size
    rounded = e.arithmetic(llvm.AddOp, size, e.integer(rows - 1))
    return e.arithmetic(llvm.UDivOp, rounded, e.integer(rows))


def frame_type(pointers: int) -> llvm.LLVMStructType:
    """What the threads are told: the arguments of the visible function."""
    return llvm.LLVMStructType.from_type_list([*[PTR] * pointers, i64])


def worker(kernel: tile.KernelOp, name: str, program: str, isa: Isa) -> llvm.FuncOp:
    """(frame): run this thread's share of the programs; each thread has an equal run of them."""
    pointers, parts = pointers_of(kernel), kernel.parts
    func = function(name, [PTR])
    e = Emitter(isa, func.body.block)
    frame = func.body.block.args[0]
    types = [*[PTR] * pointers, i64]
    arguments = [e.load(field(e, frame, pointers, n), type_, 8) for n, type_ in enumerate(types)]
    rows = row_tiles(kernel, e, arguments[-1])
    programs = e.arithmetic(llvm.MulOp, rows, e.integer(grid_columns(kernel) * parts))
    thread, threads = (
        e.emit(llvm.ZExtOp(e.emit(llvm.CallOp(symbol, return_type=i32)), i64))
        for symbol in ("omp_get_thread_num", "omp_get_num_threads")
    )

    def share(number: SSAValue) -> SSAValue:
        return e.arithmetic(llvm.UDivOp, e.arithmetic(llvm.MulOp, programs, number), threads)

    def body(number: SSAValue, _: Sequence[SSAValue]) -> Sequence[SSAValue]:
        row = e.arithmetic(llvm.URemOp, number, rows)
        place = [e.arithmetic(llvm.UDivOp, number, rows)]
        if parts > 1:
            some = e.integer(parts)
            place = [e.arithmetic(op, place[0], some) for op in (llvm.UDivOp, llvm.URemOp)]
        e.effect(llvm.CallOp(program, *arguments, row, *place))
        return []

    first, last = share(thread), share(e.arithmetic(llvm.AddOp, thread, e.integer(1)))
    with e.when(e.compare("ult", first, last)):
        e.loop(first, last, 1, [], body)
    e.effect(llvm.ReturnOp())
    return func


def field(e: Emitter, frame: SSAValue, pointers: int, number: int) -> SSAValue:
    return e.emit(llvm.GEPOp(frame, [0, number], frame_type(pointers)))


ELEMENT_WORK = 4
"""What an element costs, in multiply-adds, where a kernel only passes over it."""


def work_of_row(kernel: tile.KernelOp) -> int:
    """Multiply-adds, or as much other work, for each row of the output."""
    first, last = kernel.body.block.args[0], kernel.body.block.args[-1]
    multiplies = any(isinstance(op, tile.DotOp) for op in kernel.walk())
    return shape_of(last)[1] * (shape_of(first)[1] if multiplies else ELEMENT_WORK)


def stack(e: Emitter, count: SSAValue, type_: Attribute, align: int) -> SSAValue:
    """Memory of the function."""
    return e.emit(llvm.AllocaOp(count, type_, alignment=align))


def entry(kernel: tile.KernelOp, name: str, worker: str, finish: str, isa: Isa) -> llvm.FuncOp:
    """(pointers…, M): start the threads; little work is done by the caller's thread alone, and so
    is what comes after a sum of parts."""
    func = function(name, [*(PTR for _ in kernel.body.block.args), i64])
    e = Emitter(isa, func.body.block)
    *arrays, size = func.body.block.args
    sums = [] if kernel.sum_of_parts is None else [room_for_parts(kernel, e, size)]
    arguments, pointers = [*arrays, *sums, size], pointers_of(kernel)
    frame = stack(e, e.integer(1), frame_type(pointers), 8)
    for n, argument in enumerate(arguments):
        e.store(argument, field(e, frame, pointers, n), 8)
    total = e.arithmetic(llvm.MulOp, size, e.integer(work_of_row(kernel)))
    alone = e.emit(llvm.ZExtOp(e.compare("ult", total, e.integer(SERIAL_WORK)), i32))
    function_ = e.emit(llvm.AddressOfOp(worker, PTR))
    no_flags = e.integer(0, i32)
    e.effect(llvm.CallOp("GOMP_parallel", function_, frame, alone, no_flags))
    if kernel.sum_of_parts is not None:
        finish_tiles(kernel, e, finish, arguments)
    e.effect(llvm.ReturnOp())
    return func


def room_for_parts(kernel: tile.KernelOp, e: Emitter, size: SSAValue) -> SSAValue:
    """Memory for what each part has of each tile."""
    assert kernel.sum_of_parts is not None
    tile_ = prod(shape_of(kernel.sum_of_parts.source))
    elements = e.integer(grid_columns(kernel) * kernel.parts * tile_)
    return stack(e, e.arithmetic(llvm.MulOp, row_tiles(kernel, e, size), elements), f32, CACHE_LINE)


def finish_tiles(
    kernel: tile.KernelOp, e: Emitter, finish: str, arguments: Sequence[SSAValue]
) -> None:
    """Finish one tile after another."""

    def of_row(row: SSAValue, _: Sequence[SSAValue]) -> Sequence[SSAValue]:
        for column in range(grid_columns(kernel)):
            e.effect(llvm.CallOp(finish, *arguments, row, e.integer(column)))
        return []

    e.loop(e.integer(0), row_tiles(kernel, e, arguments[-1]), 1, [], of_row)
