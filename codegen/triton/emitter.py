"""Print a `tile.kernel` as a Triton source file.

One small function for each op, in the table EXPRESSIONS, gives the op as a Python expression.
Constants, and cheap ops that are used once, are printed inside the expression that uses them;
everything else gets a name, from its SSA name hint. An offset that a load or a store takes a
vector of gets that vector (`offs_n`) where it is defined. Masks appear only where a dimension is
no multiple of the tile.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from xdsl.dialects import arith, scf
from xdsl.dialects.builtin import IntegerAttr, StringAttr, VectorType
from xdsl.ir import Block, Operation, SSAValue

from gqc.codegen.triton import quantize
from gqc.codegen.triton.expressions import (
    EXPRESSIONS,
    accessed,
    by_descriptor,
    dtype_names,
    expanded,
    spreads,
)
from gqc.codegen.triton.helpers import HELPERS
from gqc.codegen.triton.writer import PythonWriter, pretty
from gqc.codegen.values import UnprintedError, Values, emitting
from gqc.dialects import tile
from gqc.dialects.tile import shape_of
from gqc.errors import GqcError
from gqc.formats.elements import Element

EMITTER = "the Triton emitter"
OPTIONS = ("num_warps", "num_stages", "matrix_instr_nonkdim")
ROWS = "M"
RESERVED = ("triton", "tl", "range", "grid", "launch", "describe", "TensorDescriptor")
MAX_OFFSET = 2**31 - 1
ZERO = "(0)"
FP8 = {"f8E4M3FN": ("float8e4nv", "fp8e4nv"), "f8E5M2": ("float8e5", "fp8e5")}
"""Triton's names of 8-bit floats, as of `DTYPES`, where arrays are not of bytes."""

CHEAP = {
    *(arith.AddiOp, arith.SubiOp, arith.MuliOp, arith.DivUIOp, arith.RemUIOp),
    *(tile.ProgramIdOp, tile.FullOp, tile.CastOp, tile.BroadcastOp, tile.TransposeOp),
    tile.BitcastOp,
}
"""Ops that are printed inside their only user."""

ARITHMETIC = {arith.AddfOp, arith.SubfOp, arith.MulfOp, arith.DivfOp}
"""Ops that are so printed unless they have a name."""

LONG = 60
"""No expression longer than this, in characters, is printed inside another."""


def emit(kernel: tile.KernelOp) -> str:
    """Source file of a kernel: the `@triton.jit` function, its helpers, SIGNATURE, OPTIONS, launch.

    Raises GqcError for what Triton cannot say: a tile extent that is no power of two, an array
    whose static part is beyond 32-bit offsets, an op or element type without an emitter.
    """
    return Emitter(kernel).file()


@dataclass(frozen=True)
class Range:
    """A vector of consecutive offsets, `value + arange(extent)`; wide: in 64 bits."""

    value: SSAValue
    extent: int
    wide: bool


class Emitter:
    """Prints one kernel.

    `texts` holds the expression or the name of every value printed so far; `values` are tiles of
    codes and scales that are printed as what they stand for, in float32; `blocks` the tiles of the
    arrays that are read or written through tensor descriptors.
    """

    def __init__(self, kernel: tile.KernelOp) -> None:
        self.kernel = kernel
        self.name = kernel.sym_name.data
        target = kernel.attributes.get("target")
        self.target = target.data if isinstance(target, StringAttr) else ""
        self.writer = PythonWriter({*RESERVED, ROWS, *HELPERS})
        self.texts: Values[str] = Values(EMITTER, "an expression")
        self.ranges: dict[Range, str] = {}
        self.inside: set[Operation] = set()
        accesses = [op for op in kernel.walk() if isinstance(op, tile.LoadOp | tile.StoreOp)]
        copies = [accessed(op) for op in accesses if by_descriptor(op)]
        self.blocks = {array: shape_of(value) for array, value in copies}
        self.scaled = any(isinstance(op, tile.DotScaledOp) for op in kernel.walk())
        self.used: set[str] = set()
        self.values: dict[SSAValue, Element] = {}

    # ---- the file

    def file(self) -> str:
        self.name = self.writer.fresh(self.name)
        args = self.kernel.body.block.args
        for i, arg in enumerate(args):
            self.texts[arg] = self.writer.fresh(arg.name_hint or f"arg{i}")
        names = [self.texts[a] for a in args]
        self.jit_function(names)
        body, self.writer.lines = self.writer.lines, []
        self.head()
        for helper in sorted(self.used):
            self.writer.lines += ["", *HELPERS[helper].rstrip().splitlines()]
        self.writer.lines += ["", "", *body, "", ""]
        self.launcher(names)
        return self.writer.text()

    def head(self) -> None:
        where = f" for {self.target}" if self.target else ""
        matrix = self.kernel.attributes.get("matrix")
        where += f" (matrix: {matrix.data})" if isinstance(matrix, StringAttr) else ""
        self.writer.line(f'"""Triton kernel {self.name}{where}, printed by gqc."""')
        self.writer.line()
        self.writer.line("import triton")
        self.writer.line("import triton.language as tl")
        if self.blocks:
            self.writer.line("from triton.tools.tensor_descriptor import TensorDescriptor")

    def jit_function(self, names: list[str]) -> None:
        self.writer.line(f'@triton.jit(do_not_specialize=["{ROWS}"])')
        self.writer.list(f"def {self.name}(", [*names, ROWS], "):")
        with self.writer.indented():
            self.docstring(names)
            self.statements(self.kernel.body.block)

    def docstring(self, names: list[str]) -> None:
        rows, columns = self.kernel.tile_sizes
        summary = self.kernel.attributes.get("summary")
        *inputs, output = names
        what = f"{output} from {', '.join(inputs)}"
        if isinstance(summary, StringAttr):
            what = summary.data
        self.writer.line(f'"""{what}; each program makes a {rows}×{columns} tile of {output}.')
        self.writer.line()
        for name, arg in zip(names, self.kernel.body.block.args, strict=True):
            shape = ", ".join(ROWS if n < 0 else str(n) for n in shape_of(arg))
            self.writer.line(f"{name}: {self.names_of(arg)[0]} [{shape}]")
        self.writer.line('"""')

    def launcher(self, names: list[str]) -> None:
        """Constants for who compiles the source, and a function for who runs it."""
        args = self.kernel.body.block.args
        types = {n: self.type_of(a) for n, a in zip(names, args, strict=True)}
        entries = [f'"{name}": "{type_}"' for name, type_ in {**types, ROWS: "i32"}.items()]
        self.writer.list("SIGNATURE = {", entries, "}")
        attributes = self.kernel.attributes
        options = {o: attributes[o] for o in OPTIONS if o in attributes}
        entries = [
            f'"{o}": {a.value.data}' for o, a in options.items() if isinstance(a, IntegerAttr)
        ]
        self.writer.list("OPTIONS = {", [*entries, '"enable_fp_fusion": True'], "}")
        rows, columns = self.kernel.tile_sizes
        count = -(-shape_of(args[-1])[1] // columns)
        self.writer.line()
        self.writer.line()
        with self.writer.block(f"def grid({ROWS}):"):
            self.writer.line(f"return triton.cdiv({ROWS}, {rows}), {count}, 1")
        self.writer.line()
        self.writer.line()
        if self.blocks:
            self.describe(names)
        with self.writer.block(f"def launch({', '.join(names)}):"):
            self.writer.line(f'"""Fill {names[-1]}; tensors are contiguous and on one device."""')
            self.writer.line(f"{ROWS} = {names[-1]}.shape[0]")
            passed = [f"*describe({', '.join(names)})"] if self.blocks else names
            self.writer.list(
                f"return {self.name}[grid({ROWS})](", [*passed, ROWS, "**OPTIONS"], ")"
            )

    def describe(self, names: list[str]) -> None:
        """A function from the arrays to what the kernel takes for them."""
        with self.writer.block(f"def describe({', '.join(names)}):"):
            values = []
            for name, arg in zip(names, self.kernel.body.block.args, strict=True):
                block = self.blocks.get(arg)
                text = f"TensorDescriptor.from_tensor({name}, {[*block]})" if block else name
                values.append(text)
            self.writer.list("return [", values, "]")
        self.writer.line()
        self.writer.line()

    def names_of(self, array: SSAValue) -> tuple[str, str]:
        """Names of an array's type: FP8 is known by it where a scaled dot takes what it holds.

        Only then do codes go from shared memory to the matrix unit, and scales to tensor memory.
        """
        return FP8.get(held(array), dtype_names(array)) if self.scaled else dtype_names(array)

    def type_of(self, array: SSAValue) -> str:
        """An argument's type in SIGNATURE."""
        element, block = self.names_of(array)[1], self.blocks.get(array)
        return f"tensordesc<{element}{[*block]}>" if block else f"*{element}"

    # ---- statements

    def statements(self, block: Block) -> None:
        for op in block.ops:
            with emitting(op):
                self.statement(op)

    def statement(self, op: Operation) -> None:
        match op:
            case scf.YieldOp():
                return
            case scf.ForOp():
                self.loop(op)
            case tile.StoreOp() if by_descriptor(op):
                place = ", ".join(self.texts[offset] for offset in op.offsets)
                value = quantize.stored(self, op.value)
                self.writer.statement("", f"{self.texts[op.target]}.store([{place}], {value})")
            case tile.StoreOp():
                pointers, mask = self.access(op.target, op.offsets, op.value)
                value = f"{pointers}, {quantize.stored(self, op.value)}"
                self.writer.statement("", f"tl.store({value}{mask})")
            case tile.QcastOp():
                quantize.qcast(self, op)
            case _:
                self.bind(op)
        for result in op.results:
            self.define_ranges(result)

    def bind(self, op: Operation) -> None:
        """Print an op inside its user where that reads well, else as an assignment."""
        if type(op) not in EXPRESSIONS:
            raise UnprintedError(EMITTER, op, "it is neither statement nor expression")
        text, (result,) = EXPRESSIONS[type(op)](self, op), op.results
        if isinstance(result.type, VectorType):
            self.check_tile(shape_of(result))
        if isinstance(op, arith.ConstantOp) or may_inline(op, len(text)):
            self.inside.add(op)
            self.texts[result] = f"({text})"
        else:
            self.writer.assign(self.fresh_result(result), text)

    def fresh_result(self, result: SSAValue) -> str:
        """A name of its own for a value, from now on its text."""
        self.texts[result] = self.writer.fresh(self.stem(result))
        return self.texts[result]

    def stem(self, value: SSAValue) -> str:
        """A name for a value: its hint, or else that of the first named value it is made of."""
        while isinstance(op := value.owner, Operation) and op.operands:
            if value.name_hint is not None and op not in self.inside:
                break
            value = op.operands[0]
        return value.name_hint or "value"

    def loop(self, op: scf.ForOp) -> None:
        counter, *carried = op.body.block.args
        names = [
            self.writer.fresh(arg.name_hint or result.name_hint or "acc")
            for arg, result in zip(carried, op.results, strict=True)
        ]
        for name, initial in zip(names, op.iter_args, strict=True):
            self.writer.assign(name, self.texts[initial])
        for name, arg, result in zip(names, carried, op.results, strict=True):
            self.texts[arg] = self.texts[result] = name
        bounds = ", ".join(pretty(self.texts[v]) for v in (op.lb, op.ub, op.step))
        self.texts[counter] = self.writer.fresh(counter.name_hint or "k")
        with self.writer.block(f"for {self.texts[counter]} in range({bounds}):"):
            self.define_ranges(counter)
            self.statements(op.body.block)
            last = op.body.block.last_op
            assert isinstance(last, scf.YieldOp)
            yielded = ", ".join(self.texts[v] for v in last.operands)
            if names:
                self.writer.assign(", ".join(names), yielded)

    def check_tile(self, shape: Sequence[int]) -> None:
        if any(n & (n - 1) for n in shape):
            raise GqcError(
                f"kernel {self.name}: a tile of {'x'.join(map(str, shape))}; Triton tiles extend "
                "over powers of two: choose such tile sizes"
            )

    # ---- memory

    def define_ranges(self, value: SSAValue) -> None:
        """Name every vector of offsets that starts at a value."""
        for key in dict.fromkeys(ranges_from(value)):
            start = self.texts[value]
            text = f"tl.arange(0, {key.extent})"
            if start != ZERO:
                text = f"{start} + {text}"
            if key.wide:
                text = f"({text}).to(tl.int64)"
            self.ranges[key] = self.writer.fresh(f"offs_{value.name_hint or 'i'}")
            self.writer.assign(self.ranges[key], text)

    def access(
        self, array: SSAValue, offsets: Sequence[SSAValue], value: SSAValue
    ) -> tuple[str, str]:
        """Pointers of a tile in an array, and the mask as a further argument, or nothing."""
        shape, extents = shape_of(array), aligned_extents(array, value)
        if math.prod(n for n in shape if n > 0) > MAX_OFFSET:
            raise GqcError(
                f"kernel {self.name}: {self.texts[array]} holds more than {MAX_OFFSET} elements, "
                "beyond 32-bit offsets: split the layer"
            )
        terms, conditions = [], []
        for i, (offset, extent) in enumerate(zip(offsets, extents, strict=True)):
            index = self.index(array, i, offset, extents)
            stride = math.prod(shape[i + 1 :])
            if index != ZERO:
                terms.append(f"({index}) * {stride}" if stride > 1 else index)
            if extent is not None and (shape[i] < 0 or shape[i] % extent):
                conditions.append(f"({index} < {ROWS if shape[i] < 0 else shape[i]})")
        pointers = " + ".join([self.texts[array], *terms])
        return pointers, f", mask={' & '.join(conditions)}" if conditions else ""

    def index(
        self, array: SSAValue, axis: int, offset: SSAValue, extents: Sequence[int | None]
    ) -> str:
        """One dimension's offsets, shaped to broadcast against the others: `offs_n[:, None]`."""
        extent = extents[axis]
        rank = sum(n is not None for n in extents)
        if extent is None or not needs_range(array, extents, axis):
            return self.texts[offset]
        name = self.ranges[Range(offset, extent, wide(array, axis))]
        if rank == 1:
            return name
        position = axis - (len(extents) - rank)
        return f"{name}[{', '.join(':' if i == position else 'None' for i in range(rank))}]"

    # ---- pieces of expressions

    def helper(self, name: str) -> str:
        self.used.add(name)
        return name

    def operands(self, values: Sequence[SSAValue]) -> list[str]:
        """Operands of elementwise arithmetic, where broadcasting one goes without saying."""
        texts = [self.texts[v] for v in values]
        for i, value in enumerate(values):
            op = value.owner
            if isinstance(op, Operation) and op in self.inside and spreads(op):
                texts[i] = expanded(self, op)
                break
        return texts


# ---- what is printed where


def held(array: SSAValue) -> str:
    """The element that an array holds: of bytes, what they are taken for once loaded."""
    for load in (use.operation for use in array.uses):
        for cast in (use.operation for result in load.results for use in result.uses):
            if isinstance(cast, tile.BitcastOp):
                return str(tile.element_of(cast.result))
    return str(tile.element_of(array))


def aligned_extents(array: SSAValue, value: SSAValue) -> list[int | None]:
    """The tile's extent along each dimension of the array, None for one that it has no part in."""
    shape = shape_of(value)
    return [None] * (len(shape_of(array)) - len(shape)) + list(shape)


def wide(array: SSAValue, axis: int) -> bool:
    """Whether offsets along an axis need 64 bits: rows times a static width know no bound."""
    return shape_of(array)[axis] < 0 and len(shape_of(array)) > 1


def needs_range(array: SSAValue, extents: Sequence[int | None], axis: int) -> bool:
    """Whether a dimension of a tile takes a vector of offsets; a scalar does for a single one.

    The last dimension of a tile of one element takes one, which keeps the tile's rank.
    """
    single = all(n in (None, 1) for n in extents)
    return extents[axis] != 1 or wide(array, axis) or (single and axis == len(extents) - 1)


def ranges_from(value: SSAValue) -> Iterator[Range]:
    """The vectors of offsets that start at a value, in the order of their uses."""
    for use in value.uses:
        op = use.operation
        if not isinstance(op, tile.LoadOp | tile.StoreOp) or by_descriptor(op):
            continue
        array, tensor = accessed(op)
        axis = use.index - (1 if isinstance(op, tile.LoadOp) else 2)
        extents = aligned_extents(array, tensor)
        extent = extents[axis] if axis >= 0 else None
        if extent is not None and needs_range(array, extents, axis):
            yield Range(value, extent, wide(array, axis))


def mentions(value: SSAValue) -> int:
    """How often the text of a value is printed: once a vector of offsets, once any other use."""
    vectors = list(ranges_from(value))
    return len(set(vectors)) + len(list(value.uses)) - len(vectors)


def may_inline(op: Operation, length: int) -> bool:
    """Whether an op is printed inside the expression that uses it."""
    (result,) = op.results
    if mentions(result) != 1:
        return False
    if any(ranges_from(result)):
        return type(op) in CHEAP
    (use,) = result.uses
    if use.operation.parent is not op.parent:
        return False
    if isinstance(use.operation, tile.QcastOp):
        return False  # it is printed more than once
    if isinstance(use.operation, scf.YieldOp):
        return type(op) in CHEAP | ARITHMETIC or isinstance(op, tile.DotOp | tile.DotScaledOp)
    unnamed = type(op) in ARITHMETIC and result.name_hint is None
    return (type(op) in CHEAP or spreads(op) or unnamed) and length <= LONG
