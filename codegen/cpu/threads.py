"""The grid of a kernel on threads.

They come from OpenMP through libgomp's ABI (`GOMP_parallel`), that is from the pool that torch
uses. The grid is split into equal runs, columns outermost, so that a thread's weights stay in its
cache while the rows of x pass.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects import llvm
from xdsl.dialects.builtin import ArrayAttr, DictionaryAttr, UnitAttr, i32, i64
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.codegen.cpu.emitter import PTR, Emitter
from gqc.codegen.cpu.isa import Isa
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
"""What a kernel imports."""


def function(name: str, inputs: Sequence[Attribute], linkage: str = "internal") -> llvm.FuncOp:
    """A function without a result; what its pointers reach does not overlap."""
    noalias = DictionaryAttr({"llvm.noalias": UnitAttr()})
    return llvm.FuncOp(
        name,
        llvm.LLVMFunctionType(inputs),
        llvm.LinkageAttr(linkage),
        body=Region(Block(arg_types=inputs)),
        other_props={
            "arg_attrs": ArrayAttr(noalias if t == PTR else DictionaryAttr({}) for t in inputs)
        },
    )


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
    pointers = len(kernel.body.block.args)
    func = function(name, [PTR])
    e = Emitter(isa, func.body.block)
    frame = func.body.block.args[0]
    types = [*[PTR] * pointers, i64]
    arguments = [e.load(field(e, frame, pointers, n), type_, 8) for n, type_ in enumerate(types)]
    rows = row_tiles(kernel, e, arguments[-1])
    programs = e.arithmetic(llvm.MulOp, rows, e.integer(grid_columns(kernel)))
    thread, threads = (
        e.emit(llvm.ZExtOp(e.emit(llvm.CallOp(symbol, return_type=i32)), i64))
        for symbol in ("omp_get_thread_num", "omp_get_num_threads")
    )

    def share(number: SSAValue) -> SSAValue:
        return e.arithmetic(llvm.UDivOp, e.arithmetic(llvm.MulOp, programs, number), threads)

    def body(number: SSAValue, _: Sequence[SSAValue]) -> Sequence[SSAValue]:
        row = e.arithmetic(llvm.URemOp, number, rows)
        column = e.arithmetic(llvm.UDivOp, number, rows)
        e.effect(llvm.CallOp(program, *arguments, row, column))
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
    first, *_, last = kernel.body.block.args
    multiplies = any(isinstance(op, tile.DotOp) for op in kernel.walk())
    return shape_of(last)[1] * (shape_of(first)[1] if multiplies else ELEMENT_WORK)


def entry(kernel: tile.KernelOp, name: str, worker: str, pointers: int, isa: Isa) -> llvm.FuncOp:
    """(pointers…, M): start the threads; little work is done by the caller's thread alone."""
    func = function(name, [*[PTR] * pointers, i64], "external")
    e = Emitter(isa, func.body.block)
    arguments = func.body.block.args
    # llvmlite types what alloca returns; the cast makes it a plain pointer.
    stack = e.emit(llvm.AllocaOp(e.integer(1), frame_type(pointers), alignment=8))
    frame = e.emit(llvm.BitcastOp(stack, PTR))
    for n, argument in enumerate(arguments):
        e.store(argument, field(e, frame, pointers, n), 8)
    total = e.arithmetic(llvm.MulOp, arguments[-1], e.integer(work_of_row(kernel)))
    alone = e.emit(llvm.ZExtOp(e.compare("ult", total, e.integer(SERIAL_WORK)), i32))
    function_ = e.emit(llvm.AddressOfOp(worker, PTR))
    no_flags = e.integer(0, i32)
    e.effect(llvm.CallOp("GOMP_parallel", function_, frame, alone, no_flags))
    e.effect(llvm.ReturnOp())
    return func
