"""Lower a `tile.kernel` to the `llvm` dialect.

Three functions come out: `<name>.program` computes one tile of the output, `<name>.worker` runs the
programs that are one thread's share of the grid, and `<name>` (the only one visible) starts the
threads. Threads come from OpenMP through libgomp's ABI (`GOMP_parallel`), that is from the pool
that torch uses. The grid is split into equal runs, columns outermost, so that a thread's weights
stay in its cache while the rows of x pass.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import cast

from xdsl.dialects import arith, llvm, scf
from xdsl.dialects import math as math_dialect
from xdsl.dialects.builtin import (
    ArrayAttr,
    DictionaryAttr,
    IndexType,
    IntegerAttr,
    ModuleOp,
    UnitAttr,
    f32,
    i32,
    i64,
)
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from gqc.codegen.cpu import codes, functions, panels, quantize, tiles
from gqc.codegen.cpu.dot import dot
from gqc.codegen.cpu.emitter import PTR, Emitter, Index
from gqc.codegen.cpu.isa import Isa
from gqc.codegen.cpu.tiles import Array, Loaded, Registers, Tile
from gqc.dialects import tile
from gqc.dialects.tile import element_of, shape_of
from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS

SERIAL_WORK = 1 << 17
"""Multiply-adds, or as much other work, below which starting threads costs more than it saves: some
microseconds."""

OPENMP = {
    "GOMP_parallel": llvm.LLVMFunctionType([PTR, PTR, i32, i32]),
    "omp_get_thread_num": llvm.LLVMFunctionType([], i32),
    "omp_get_num_threads": llvm.LLVMFunctionType([], i32),
}
"""What a kernel imports."""


def lower(kernel: tile.KernelOp, isa: Isa) -> ModuleOp:
    """The kernel as a module of the `llvm` dialect.

    The visible function takes a pointer for each argument of the kernel, then the number of rows M
    (i64). Raises GqcError on what a CPU kernel cannot express.
    """
    name = kernel.sym_name.data
    pointers = len(kernel.body.block.args)
    return ModuleOp(
        [
            *(
                llvm.FuncOp(symbol, type_, llvm.LinkageAttr("external"))
                for symbol, type_ in OPENMP.items()
            ),
            program(kernel, f"{name}.program", isa),
            worker(kernel, f"{name}.worker", f"{name}.program", isa),
            entry(kernel, name, f"{name}.worker", pointers, isa),
        ]
    )


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


# One program


def program(kernel: tile.KernelOp, name: str, isa: Isa) -> llvm.FuncOp:
    """(pointers…, M, row tile, column tile): compute one tile of the output."""
    arguments = kernel.body.block.args
    func = function(name, [*(PTR for _ in arguments), i64, i64, i64])
    *pointers, size, row, column = func.body.block.args
    e = Emitter(isa, func.body.block)
    ids = (Index(row, 0, 0, None, 1), Index(column, 0, 0, grid_columns(kernel) - 1, 1))
    lowering = Lowering(e, ids)
    for argument, pointer in zip(arguments, pointers, strict=True):
        array = Array(pointer, element_of(argument), shape_of(argument), size)
        lowering.arrays[argument] = array
    lowering.run(kernel.body.block)
    e.effect(llvm.ReturnOp())
    return func


class Lowering:
    """What is known of the values of a kernel while its ops are lowered one after another."""

    def __init__(self, e: Emitter, ids: tuple[Index, Index]):
        self.e = e
        self.ids = ids
        self.arrays: dict[SSAValue, Array] = {}
        self.indices: dict[SSAValue, Index] = {}
        self.tiles: dict[SSAValue, Tile] = {}

    def run(self, block: Block) -> None:
        for op in block.ops:
            if isinstance(op, scf.YieldOp):
                continue
            if type(op) not in RULES:
                raise GqcError(f"{op.name} has no lowering to CPU code")
            RULES[type(op)](self, op)

    def index(self, value: SSAValue) -> Index:
        return self.indices[value]

    def constant(self, value: SSAValue, what: str) -> int:
        index = self.indices[value]
        if index.base is not None:
            raise GqcError(f"{what} must be a constant in a CPU kernel")
        return index.offset

    def registers(self, value: SSAValue) -> list[SSAValue]:
        """All vectors of a tile, computed here, row by row."""
        source = self.tiles[value]
        return [v for m in range(source.rows) for v in source.row(self.e, Index.constant(m))]

    def as_tile(self, value: SSAValue, vectors: Sequence[SSAValue]) -> Registers:
        shape = shape_of(value)
        width = len(vectors) // (shape[0] if len(shape) > 1 else 1)
        rows = [list(vectors[m : m + width]) for m in range(0, len(vectors), width)]
        return Registers(shape, element_of(value), rows)


Rule = Callable[[Lowering, Operation], None]


def lower_constant(lowering: Lowering, op: arith.ConstantOp) -> None:
    assert isinstance(op.value, IntegerAttr) and isinstance(op.result.type, IndexType)
    lowering.indices[op.result] = Index.constant(op.value.value.data)


def lower_program_id(lowering: Lowering, op: tile.ProgramIdOp) -> None:
    lowering.indices[op.result] = lowering.ids[op.axis.value.data]


def lower_addi(lowering: Lowering, op: arith.AddiOp) -> None:
    a, b = lowering.index(op.lhs), lowering.index(op.rhs)
    lowering.indices[op.result] = lowering.e.add(a, b)


def lower_muli(lowering: Lowering, op: arith.MuliOp) -> None:
    a, b = op.lhs, op.rhs
    if lowering.index(b).base is not None:
        a, b = b, a
    factor = lowering.constant(b, "one factor of arith.muli")
    lowering.indices[op.result] = lowering.e.multiply(lowering.index(a), factor)


def lower_divui(lowering: Lowering, op: arith.DivUIOp) -> None:
    divisor = lowering.constant(op.rhs, "the divisor of arith.divui")
    lowering.indices[op.result] = lowering.e.quotient(lowering.index(op.lhs), divisor)


def lower_remui(lowering: Lowering, op: arith.RemUIOp) -> None:
    divisor = lowering.constant(op.rhs, "the divisor of arith.remui")
    lowering.indices[op.result] = lowering.e.remainder(lowering.index(op.lhs), divisor)


def elementwise(operation: Callable[[Emitter, SSAValue, SSAValue], SSAValue]) -> Rule:
    def rule(lowering: Lowering, op: Operation) -> None:
        a, b = (lowering.tiles[v] for v in op.operands)
        lowering.tiles[op.results[0]] = tiles.Elementwise(a.shape, a.element, operation, a, b)

    return rule


def mapped(function: Callable[[Emitter, SSAValue], SSAValue]) -> Rule:
    def rule(lowering: Lowering, op: Operation) -> None:
        source = lowering.tiles[op.operands[0]]
        tile_ = functions.Mapped(source.shape, source.element, function, source)
        lowering.tiles[op.results[0]] = tile_

    return rule


def lower_full(lowering: Lowering, op: tile.FullOp) -> None:
    shape, element = shape_of(op.result), element_of(op.result)
    lowering.tiles[op.result] = tiles.Full(shape, element, op.value.value.data)


def lower_load(lowering: Lowering, op: tile.LoadOp) -> None:
    offsets = tuple(lowering.index(o) for o in op.offsets)
    shape, array = shape_of(op.result), lowering.arrays[op.source]
    if len(shape) > 2:
        raise GqcError(f"a tile of rank {len(shape)} in a CPU kernel")
    lowering.tiles[op.result] = Loaded(shape, element_of(op.result), array, offsets)


def lower_unpack(lowering: Lowering, op: tile.UnpackOp) -> None:
    planes = tuple(cast(Loaded, lowering.tiles[p]) for p in op.planes)
    shape, element = shape_of(op.result), element_of(op.result)
    along_lanes = op.axis.value.data == len(shape) - 1
    format = ELEMENTS[str(element)]
    lowering.tiles[op.result] = codes.Unpacked(shape, element, planes, format, along_lanes)


def lower_cast(lowering: Lowering, op: tile.CastOp) -> None:
    source, element = lowering.tiles[op.source], element_of(op.result)
    if source.element == element:  # values of codes that were never made
        lowering.tiles[op.result] = source
        return
    kind = codes.Decoded if isinstance(source, codes.Unpacked) else tiles.Converted
    lowering.tiles[op.result] = kind(source.shape, element, source)  # type: ignore[arg-type]


def lower_qcast(lowering: Lowering, op: tile.QcastOp) -> None:
    """Codes and scales are held as what they stand for, in f32."""
    lanes = lowering.e.isa.lanes
    if op.block % lanes:
        raise GqcError(f"blocks of {op.block} do not fill vectors of {lanes} lanes")
    tensor_scale = None if op.tensor_scale is None else lowering.tiles[op.tensor_scale]
    scales = quantize.BlockScales(
        shape_of(op.scale), f32, lowering.tiles[op.source], tensor_scale, op.rule.data, *op.formats
    )
    lowering.tiles[op.scale] = scales
    lowering.tiles[op.codes] = quantize.Quantized(shape_of(op.codes), f32, scales)


def lower_repeat(lowering: Lowering, op: tile.RepeatOp) -> None:
    axis, shape, times = op.axis.value.data, shape_of(op.result), op.times.value.data
    if len(shape) != 2:
        raise GqcError("tile.repeat of a tile of rank 1 in a CPU kernel")
    source = lowering.tiles[op.source]
    kind = tiles.RepeatedColumns if axis else tiles.Repeated
    lowering.tiles[op.result] = kind(shape, source.element, source, times)


def lower_broadcast(lowering: Lowering, op: tile.BroadcastOp) -> None:
    source = lowering.tiles[op.source]
    lowering.tiles[op.result] = tiles.Broadcast(shape_of(op.result), source.element, source)


def lower_transpose(lowering: Lowering, op: tile.TransposeOp) -> None:
    source = lowering.tiles[op.source]
    lowering.tiles[op.result] = tiles.Transposed(shape_of(op.result), source.element, source)


def lower_sum(lowering: Lowering, op: tile.SumOp) -> None:
    if op.axis.value.data != 1:
        raise GqcError("tile.sum along the rows of a CPU kernel")
    source = lowering.tiles[op.source]
    lowering.tiles[op.result] = tiles.Summed(shape_of(op.result), element_of(op.result), source)


def lower_take_panels(lowering: Lowering, op: tile.TakePanelsOp) -> None:
    source, panel, part = lowering.tiles[op.source], op.panel.value.data, op.part.value.data
    shape = shape_of(op.result)
    lowering.tiles[op.result] = panels.Panels(shape, source.element, source, panel, part)


def lower_dot(lowering: Lowering, op: tile.DotOp) -> None:
    acc, lhs, rhs = (lowering.tiles[v] for v in op.operands)
    lowering.tiles[op.result] = dot(lowering.e, acc, lhs, rhs)


def lower_for(lowering: Lowering, op: scf.ForOp) -> None:
    """A loop of at least one round; what it carries lives in registers."""
    e = lowering.e
    lower, upper, step = (
        lowering.constant(v, "a loop's bound or step") for v in (op.lb, op.ub, op.step)
    )
    counter, *carried = op.body.block.args
    last = lower + (upper - 1 - lower) // step * step
    terminator = op.body.block.last_op
    assert isinstance(terminator, scf.YieldOp) and last >= lower
    counts = [len(lowering.registers(v)) for v in op.iter_args]

    def split(values: Sequence[SSAValue]) -> list[Sequence[SSAValue]]:
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def body(k: SSAValue, values: Sequence[SSAValue]) -> list[SSAValue]:
        lowering.indices[counter] = Index(k, 0, lower, last, math.gcd(lower, step))
        for argument, vectors in zip(carried, split(values), strict=True):
            lowering.tiles[argument] = lowering.as_tile(argument, vectors)
        lowering.run(op.body.block)
        return [v for value in terminator.operands for v in lowering.registers(value)]

    start = [v for value in op.iter_args for v in lowering.registers(value)]
    totals = e.loop(e.integer(lower), e.integer(upper), step, start, body)
    for result, vectors in zip(op.results, split(totals), strict=True):
        lowering.tiles[result] = lowering.as_tile(result, vectors)


def lower_store(lowering: Lowering, op: tile.StoreOp) -> None:
    """Store rows below the bound; lanes beyond the last column are masked."""
    e = lowering.e
    value, array = lowering.tiles[op.value], lowering.arrays[op.target]
    target = Loaded(value.shape, array.element, array, tuple(map(lowering.index, op.offsets)))
    rows = [value.row(e, Index.constant(m)) for m in range(value.rows)]
    for m, vectors in enumerate(rows):
        *leading, first, column = target.offsets
        row = e.add(first, Index.constant(m))
        stored = [e.narrow(v, array.element) for v in vectors]
        with e.when(e.compare("ult", e.scalar(row), array.bound(e, len(leading)))):
            for lane, vector in zip(value.vectors(e), stored, strict=True):
                store_vector(e, target, vector, [*leading, row, column + lane])


def store_vector(e: Emitter, target: Loaded, vector: SSAValue, indices: list[Index]) -> None:
    array = target.array
    address = array.address(e, indices)
    if array.holds(target.offsets[-1], target.columns, len(array.shape) - 1):
        e.store(vector, address, array.align)
    else:
        e.masked_store(vector, address, array.align, target.mask(e, indices[-1]))


RULES: dict[type[Operation], Rule] = cast(
    dict[type[Operation], Rule],
    {
        arith.ConstantOp: lower_constant,
        arith.AddiOp: lower_addi,
        arith.MuliOp: lower_muli,
        arith.DivUIOp: lower_divui,
        arith.RemUIOp: lower_remui,
        arith.AddfOp: elementwise(Emitter.fadd),
        arith.SubfOp: elementwise(Emitter.fsub),
        arith.MulfOp: elementwise(Emitter.fmul),
        arith.DivfOp: elementwise(functions.divide),
        arith.MaximumfOp: elementwise(functions.maximum),
        math_dialect.ExpOp: mapped(functions.exp),
        math_dialect.ErfOp: mapped(functions.erf),
        math_dialect.TanhOp: mapped(functions.tanh),
        math_dialect.RsqrtOp: mapped(functions.rsqrt),
        scf.ForOp: lower_for,
        tile.ProgramIdOp: lower_program_id,
        tile.FullOp: lower_full,
        tile.LoadOp: lower_load,
        tile.UnpackOp: lower_unpack,
        tile.CastOp: lower_cast,
        tile.QcastOp: lower_qcast,
        tile.RepeatOp: lower_repeat,
        tile.BroadcastOp: lower_broadcast,
        tile.TransposeOp: lower_transpose,
        tile.SumOp: lower_sum,
        tile.TakePanelsOp: lower_take_panels,
        tile.DotOp: lower_dot,
        tile.StoreOp: lower_store,
    },
)
"""How each op of a kernel is lowered."""


# The grid and the threads


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
