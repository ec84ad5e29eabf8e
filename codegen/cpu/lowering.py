"""Lower a `tile.kernel` to the `llvm` dialect.

Three functions come out: `<name>.program` computes one tile of the output, `<name>.worker` runs the
programs that are one thread's share of the grid, and `<name>` (the only one visible) starts the
threads (`gqc.codegen.cpu.threads`). Where programs of several parts of K make a tile, they leave
their sums in memory, and `<name>.finish` adds these and does the rest.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import cast

from xdsl.dialects import arith, llvm, memref, scf
from xdsl.dialects import math as math_dialect
from xdsl.dialects.builtin import (
    IndexType,
    IntegerAttr,
    IntegerType,
    ModuleOp,
    Signedness,
    bf16,
    f32,
    i8,
    i32,
    i64,
)
from xdsl.ir import Operation, SSAValue

from gqc.codegen.cpu import amx, codes, functions, int8, panels, parts, quantize, stores, tiles
from gqc.codegen.cpu.dot import dot
from gqc.codegen.cpu.emitter import PTR, Emitter, Index
from gqc.codegen.cpu.isa import Isa
from gqc.codegen.cpu.threads import (
    OPENMP,
    entry,
    function,
    grid_columns,
    pointers_of,
    stack,
    worker,
)
from gqc.codegen.cpu.tiles import Array, Loaded, Registers, Tile
from gqc.codegen.values import UnprintedError, Values, emitting
from gqc.dialects import tile
from gqc.dialects.tile import element_of, shape_of
from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS

EMITTER = "the CPU emitter"


def lower(kernel: tile.KernelOp, isa: Isa) -> ModuleOp:
    """The kernel as a module of the `llvm` dialect.

    The visible function takes a pointer for each argument of the kernel, then the number of rows M
    (i64). Raises GqcError on what a CPU kernel cannot express.
    """
    name = kernel.sym_name.data
    total = kernel.sum_of_parts
    return ModuleOp(
        [
            *(
                llvm.FuncOp(symbol, type_, llvm.LinkageAttr("external"))
                for symbol, type_ in OPENMP.items()
            ),
            program(kernel, f"{name}.program", isa),
            *([] if total is None else [finish(kernel, total, f"{name}.finish", isa)]),
            worker(kernel, f"{name}.worker", f"{name}.program", isa),
            entry(kernel, name, f"{name}.worker", f"{name}.finish", isa),
        ]
    )


# One program


def program(kernel: tile.KernelOp, name: str, isa: Isa) -> llvm.FuncOp:
    """(pointers…, M, row tile, column tile): compute one tile of the output; or (pointers…, sums,
    M, row tile, column tile, part): compute what a part of K has of it."""
    total = kernel.sum_of_parts
    func = function(name, [*[PTR] * pointers_of(kernel), *[i64] * (3 if total is None else 4)])
    lowering = Lowering(kernel, func, isa)
    lowering.run(kernel.body.block.ops if total is None else parts.before(total))
    if total is not None:
        lowering.sums(total).store(lowering.e, lowering.ids[2], lowering.registers(total.source))
    for op in (*lowering.e.at_end, llvm.ReturnOp()):
        lowering.e.effect(op)
    return func


def finish(kernel: tile.KernelOp, total: tile.AddPartsOp, name: str, isa: Isa) -> llvm.FuncOp:
    """(pointers…, sums, M, row tile, column tile): add up what the parts have of a tile, in order,
    and do what comes after."""
    func = function(name, [*[PTR] * pointers_of(kernel), i64, i64, i64])
    lowering = Lowering(kernel, func, isa)
    vectors = lowering.sums(total).total(lowering.e)
    lowering.tiles[total.result] = lowering.as_tile(total.result, vectors)
    lowering.run(parts.after(total))
    lowering.e.effect(llvm.ReturnOp())
    return func


class Lowering:
    """What is known of the values of a kernel while its ops are lowered one after another."""

    def __init__(self, kernel: tile.KernelOp, func: llvm.FuncOp, isa: Isa):
        count, block = pointers_of(kernel), func.body.block
        self.pointers, (size, *ids) = block.args[:count], block.args[count:]
        self.e = Emitter(isa, block)
        self.columns = grid_columns(kernel)
        lasts = (None, self.columns - 1, kernel.parts - 1)
        self.ids = [Index(i, 0, 0, last, 1) for i, last in zip(ids, lasts, strict=False)]
        self.arrays: Values[Array] = Values(EMITTER, "an array")
        for argument, pointer in zip(kernel.body.block.args, self.pointers, strict=False):
            array = Array(pointer, element_of(argument), shape_of(argument), size)
            self.arrays[argument] = array
            pointer.name_hint = argument.name_hint
        size.name_hint = "M"
        self.indices: Values[Index] = Values(EMITTER, "an index")
        self.tiles: Values[Tile] = Values(EMITTER, "a tile")

    def sums(self, total: tile.AddPartsOp) -> parts.Sums:
        """What the parts have of this program's tile."""
        row, column, *_ = self.ids
        return parts.sums_of(self.e, total, self.pointers[-1], row, column, self.columns)

    def run(self, ops: Iterable[Operation]) -> None:
        for op in ops:
            if isinstance(op, scf.YieldOp):
                continue
            if type(op) not in RULES:
                raise UnprintedError(EMITTER, op, "no rule lowers it")
            with emitting(op):
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
UI8 = IntegerType(8, Signedness.UNSIGNED)


def lower_constant(lowering: Lowering, op: arith.ConstantOp) -> None:
    if not isinstance(op.value, IntegerAttr) or not isinstance(op.result.type, IndexType):
        raise UnprintedError(EMITTER, op, "constants are of type index")
    lowering.indices[op.result] = Index.constant(op.value.value.data)


def lower_program_id(lowering: Lowering, op: tile.ProgramIdOp) -> None:
    lowering.indices[op.result] = lowering.ids[op.axis.value.data]


def lower_addi(lowering: Lowering, op: arith.AddiOp) -> None:
    a, b = lowering.index(op.lhs), lowering.index(op.rhs)
    lowering.indices[op.result] = lowering.e.add(a, b)


def lower_muli(lowering: Lowering, op: arith.MuliOp) -> None:
    a, b = op.lhs, op.rhs
    if a in lowering.tiles:
        factors = lowering.tiles[a], lowering.tiles[b]
        lowering.tiles[op.result] = int8.Combined(shape_of(op.result), i32, llvm.MulOp, *factors)
        return
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


def lower_subi(lowering: Lowering, op: arith.SubiOp) -> None:
    """A difference of indices, which is not negative."""
    e = lowering.e
    a, b = lowering.index(op.lhs), lowering.index(op.rhs)
    difference = e.arithmetic(llvm.SubOp, e.scalar(a), e.scalar(b))
    high = None if a.high is None else a.high - b.low
    lowering.indices[op.result] = Index(difference, 0, 0, high, 1)


def lower_minui(lowering: Lowering, op: arith.MinUIOp) -> None:
    a, b = lowering.index(op.lhs), lowering.index(op.rhs)
    lowering.indices[op.result] = lowering.e.minimum(a, b)


def lower_dim(lowering: Lowering, op: memref.DimOp) -> None:
    axis, array = lowering.constant(op.index, "an axis"), lowering.arrays[op.source]
    size = array.shape[axis]
    known = Index.constant(size) if size >= 0 else Index(array.size, 0, 0, None, 1)
    lowering.indices[op.result] = known


def lower_memref_load(lowering: Lowering, op: memref.LoadOp) -> None:
    """A number that counts something, read by the program."""
    array, places = lowering.arrays[op.memref], [lowering.index(i) for i in op.indices]
    value = lowering.e.load(array.address(lowering.e, places), i64, array.align)
    lowering.indices[op.res] = Index(value, 0, 0, None, 1)


def lower_index_cast(lowering: Lowering, op: arith.IndexCastOp) -> None:
    lowering.indices[op.result] = lowering.index(op.input)


def lower_alloca(lowering: Lowering, op: memref.AllocaOp) -> None:
    """Memory of one program lies on its thread's stack."""
    e, shape, element = lowering.e, shape_of(op.memref), element_of(op.memref)
    held = i8 if element == UI8 else element
    pointer = stack(e, e.integer(math.prod(shape)), held, tiles.CACHE_LINE)
    together = element == UI8 or (element == bf16 and e.isa.dot_bf16 is not None)
    kind = tiles.Interleaved if together else Array
    lowering.arrays[op.memref] = kind(pointer, element, shape, e.integer(shape[0]))


def elementwise(operation: Callable[[Emitter, SSAValue, SSAValue], SSAValue]) -> Rule:
    def rule(lowering: Lowering, op: Operation) -> None:
        a, b = (lowering.tiles[v] for v in op.operands)
        lowering.tiles[op.results[0]] = tiles.Elementwise(a.shape, a.element, operation, a, b)

    return rule


def lower_subtract(lowering: Lowering, op: arith.SubfOp) -> None:
    """Half of how many codes there are is taken from the codes, not from what they stand for."""
    a, b = (lowering.tiles[v] for v in op.operands)
    if isinstance(a, codes.Decoded) and isinstance(b, tiles.Full) and a.has_middle(b.value):
        lowering.tiles[op.result] = a.less_middle()
    else:
        elementwise(Emitter.fsub)(lowering, op)


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
    kind = tiles.LoadedTogether if isinstance(array, tiles.Interleaved) else Loaded
    lowering.tiles[op.result] = kind(shape, element_of(op.result), array, offsets)  # type: ignore[arg-type]


def lower_unpack(lowering: Lowering, op: tile.UnpackOp) -> None:
    planes = tuple(cast(Loaded, lowering.tiles[p]) for p in op.planes)
    shape, element = shape_of(op.result), element_of(op.result)
    along_lanes = op.axis.value.data == len(shape) - 1
    format = ELEMENTS[str(element)]
    if along_lanes and op.order_name != "pairs":
        raise GqcError(f"codes in {op.order_name} along the lanes of a CPU kernel")
    if op.order_name == "quads":
        lowering.tiles[op.result] = int8.Quads(shape, element, planes, format)
        return
    lowering.tiles[op.result] = codes.Unpacked(
        shape, element, planes, format, along_lanes, op.order_name
    )


def lower_cast(lowering: Lowering, op: tile.CastOp) -> None:
    source, element = lowering.tiles[op.source], element_of(op.result)
    if source.element == element:  # values of codes that were never made
        lowering.tiles[op.result] = source
        return
    if isinstance(source, int8.Quads):  # bytes hold codes of any width
        lowering.tiles[op.result] = int8.Quads(source.shape, element, source.planes, source.format)
        return
    kind = codes.Decoded if isinstance(source, codes.Unpacked) else tiles.Converted
    if source.element == i32:
        kind = int8.Floats
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
    shape, element = shape_of(op.result), element_of(op.result)
    total = tiles.Summed(shape, f32, lowering.tiles[op.source])
    lowering.tiles[op.result] = int8.Whole(shape, i32, total) if element == i32 else total


def lower_max(lowering: Lowering, op: tile.MaxOp) -> None:
    if op.axis.value.data != 1:
        raise GqcError("tile.max along the rows of a CPU kernel")
    source = lowering.tiles[op.source]
    lowering.tiles[op.result] = functions.Greatest(shape_of(op.result), f32, source)


def lower_bitcast(lowering: Lowering, op: tile.BitcastOp) -> None:
    """Bytes and codes of 8 bits are the same."""
    if {str(element_of(op.source)), str(element_of(op.result))} != {"i8", "si8"}:
        raise GqcError(f"{element_of(op.source)} as {element_of(op.result)} in a CPU kernel")
    lowering.tiles[op.result] = lowering.tiles[op.source]


def lower_take_panels(lowering: Lowering, op: tile.TakePanelsOp) -> None:
    source, panel, part = lowering.tiles[op.source], op.panel.value.data, op.part.value.data
    shape = shape_of(op.result)
    lowering.tiles[op.result] = panels.Panels(shape, source.element, source, panel, part)


def lower_dot(lowering: Lowering, op: tile.DotOp) -> None:
    acc, lhs, rhs = (lowering.tiles[v] for v in op.operands)
    if amx.multiplies(lowering.e, acc, lhs, rhs):
        memory = cast(Loaded, lhs), cast(tiles.LoadedTogether, rhs)
        lowering.tiles[op.result] = amx.dot(lowering.e, acc, *memory)
    elif acc.rows > stores.MANY_ROWS:
        raise GqcError(f"a dot of {acc.rows} rows is for AMX, which {lowering.e.isa.name} has not")
    elif acc.element == i32:
        lowering.tiles[op.result] = int8.dot(
            lowering.e, acc, cast(Loaded, lhs), cast(int8.Quads, rhs)
        )
    else:
        lowering.tiles[op.result] = dot(lowering.e, acc, lhs, rhs)


def lower_for(lowering: Lowering, op: scf.ForOp) -> None:
    """A loop of at least one round; what it carries lives in registers."""
    e = lowering.e
    lower, step = (lowering.constant(v, "a loop's start or step") for v in (op.lb, op.step))
    upper = lowering.index(op.ub)
    counter, *carried = op.body.block.args
    last = None
    if upper.high is not None and step > 0:
        last = lower + (upper.high - 1 - lower) // step * step
    terminator = op.body.block.last_op
    assert isinstance(terminator, scf.YieldOp)
    if step < 1 or (last is not None and last < lower):
        raise UnprintedError(EMITTER, op, "loops have one round or more, and a step above 0")
    counts = [len(lowering.registers(v)) for v in op.iter_args]

    def split(values: Sequence[SSAValue]) -> list[Sequence[SSAValue]]:
        ends = [sum(counts[: i + 1]) for i in range(len(counts))]
        return [values[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def round_(k: Index, values: Sequence[SSAValue]) -> list[SSAValue]:
        lowering.indices[counter] = k
        for argument, vectors in zip(carried, split(values), strict=True):
            lowering.tiles[argument] = lowering.as_tile(argument, vectors)
        lowering.run(op.body.block.ops)
        return [v for value in terminator.operands for v in lowering.registers(value)]

    def body(k: SSAValue, values: Sequence[SSAValue]) -> list[SSAValue]:
        return round_(Index(k, 0, lower, last, math.gcd(lower, step)), values)

    start = [v for value in op.iter_args for v in lowering.registers(value)]
    if upper.base is None and last == lower:
        totals: Sequence[SSAValue] = round_(Index.constant(lower), start)
    else:
        totals = e.loop(e.integer(lower), e.scalar(upper), step, start, body)
    for result, vectors in zip(op.results, split(totals), strict=True):
        lowering.tiles[result] = lowering.as_tile(result, vectors)


def lower_store(lowering: Lowering, op: tile.StoreOp) -> None:
    """Store rows below the bound; lanes beyond the last column are masked."""
    value, array = lowering.tiles[op.value], lowering.arrays[op.target]
    offsets = tuple(map(lowering.index, op.offsets))
    if isinstance(array, tiles.Interleaved):
        stores.together(lowering.e, value, array, offsets)
        return
    target = Loaded(value.shape, array.element, array, offsets)
    store = stores.elements if value.columns < lowering.e.isa.lanes else stores.rows
    store(lowering.e, value, target)


RULES: dict[type[Operation], Rule] = cast(
    dict[type[Operation], Rule],
    {
        arith.ConstantOp: lower_constant,
        arith.AddiOp: lower_addi,
        arith.MuliOp: lower_muli,
        arith.DivUIOp: lower_divui,
        arith.RemUIOp: lower_remui,
        arith.SubiOp: lower_subi,
        arith.MinUIOp: lower_minui,
        memref.DimOp: lower_dim,
        memref.LoadOp: lower_memref_load,
        memref.AllocaOp: lower_alloca,
        arith.IndexCastOp: lower_index_cast,
        arith.AddfOp: elementwise(Emitter.fadd),
        arith.SubfOp: lower_subtract,
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
        tile.BitcastOp: lower_bitcast,
        tile.RepeatOp: lower_repeat,
        tile.BroadcastOp: lower_broadcast,
        tile.TransposeOp: lower_transpose,
        tile.SumOp: lower_sum,
        tile.MaxOp: lower_max,
        tile.TakePanelsOp: lower_take_panels,
        tile.DotOp: lower_dot,
        tile.StoreOp: lower_store,
    },
)
"""How each op of a kernel is lowered."""
