"""The `tile` dialect: kernels for every target.

A kernel reads and writes global arrays (`memref`, row-major and contiguous, every dimension static
but for the rows) and computes on tiles (`vector`). One program of the grid makes one BM×BN tile of
the output. Loops are `scf.for`, index arithmetic and elementwise tile arithmetic are `arith`; this
dialect adds only what those lack: memory with bounds, unpacking of packed codes, and the dot.
On a GPU a tile is a block tensor, on a CPU a family of vector registers.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import (
    DenseArrayBase,
    FloatAttr,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    SymbolNameConstraint,
    VectorType,
    f32,
    i32,
    i64,
)
from xdsl.ir import Attribute, Dialect, Operation, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    prop_def,
    region_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import (
    IsolatedFromAbove,
    MemoryReadEffect,
    MemoryWriteEffect,
    NoTerminator,
    Pure,
    SymbolOpInterface,
)

from gqc.dialects.constraints import require
from gqc.formats.elements import ELEMENTS
from gqc.formats.packing import planes_of

index = IndexType()


def shape_of(value: SSAValue | Attribute) -> tuple[int, ...]:
    """Shape of a `vector` or `memref` value or type; `DYNAMIC_INDEX` stands for a dynamic one."""
    type_ = value.type if isinstance(value, SSAValue) else value
    assert isinstance(type_, VectorType | MemRefType)
    return type_.get_shape()


def element_of(value: SSAValue | Attribute) -> Attribute:
    """Element type of a `vector` or `memref` value or type."""
    type_ = value.type if isinstance(value, SSAValue) else value
    assert isinstance(type_, VectorType | MemRefType)
    return type_.get_element_type()


@irdl_op_definition
class KernelOp(IRDLOperation):
    """One kernel: arguments are x [M, K], weight planes, scale, zero, bias [N], and last y [M, N].

    C1 arguments are memrefs.
    C2 the last argument is the output, of rank 2.
    C3 there are two tile sizes, both positive.
    """

    name = "tile.kernel"

    sym_name = prop_def(SymbolNameConstraint())
    tile = prop_def(DenseArrayBase.constr(i64))
    body = region_def("single_block")

    traits = traits_def(IsolatedFromAbove(), SymbolOpInterface(), NoTerminator())

    def __init__(
        self,
        name: str,
        tile: tuple[int, int],
        body: Region,
        attributes: dict[str, Attribute] | None = None,
    ):
        super().__init__(
            properties={
                "sym_name": StringAttr(name),
                "tile": DenseArrayBase.from_list(i64, tile),
            },
            attributes=attributes or {},
            regions=[body],
        )

    @property
    def tile_sizes(self) -> tuple[int, int]:
        """(BM, BN): rows and columns of the output that one program makes."""
        rows, columns = self.tile.get_values()
        return int(rows), int(columns)

    def verify_(self) -> None:
        args = self.body.block.args
        require(
            all(isinstance(a.type, MemRefType) for a in args),
            self,
            "C1",
            "arguments must be memrefs",
        )
        output = args[-1] if args else None
        require(
            output is not None and len(shape_of(output)) == 2,
            self,
            "C2",
            "the output must have rank 2",
        )
        require(len(self.tile) == 2, self, "C3", "there must be two tile sizes")
        require(min(self.tile_sizes) > 0, self, "C3", "tile sizes must be positive")

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_symbol_name(self.sym_name.data)
        with printer.in_parens():
            printer.print_list(self.body.block.args, printer.print_block_argument)
        rows, columns = self.tile_sizes
        printer.print_string(f" tile<{rows}, {columns}>")
        printer.print_op_attributes(self.attributes, print_keyword=True)
        printer.print_string(" ")
        printer.print_region(self.body, print_entry_block_args=False)

    @classmethod
    def parse(cls, parser: Parser) -> KernelOp:
        def argument() -> Parser.Argument:
            argument = parser.parse_argument()
            parser.parse_optional_location()
            return argument

        name = parser.parse_symbol_name().data
        args = parser.parse_comma_separated_list(parser.Delimiter.PAREN, argument)
        parser.parse_keyword("tile")
        with parser.in_angle_brackets():
            rows = parser.parse_integer()
            parser.parse_punctuation(",")
            columns = parser.parse_integer()
        attributes = parser.parse_optional_attr_dict_with_keyword()
        body = parser.parse_region(args)
        return cls(name, (rows, columns), body, dict(attributes.data) if attributes else None)


@irdl_op_definition
class ProgramIdOp(IRDLOperation):
    """Position in the grid; axis 0 counts row tiles, axis 1 column tiles. C1 the axis is 0 or 1."""

    name = "tile.program_id"

    axis = prop_def(IntegerAttr.constr(i64))
    result = result_def(IndexType)
    traits = traits_def(Pure())
    assembly_format = "$axis attr-dict"

    def __init__(self, axis: int):
        super().__init__(properties={"axis": IntegerAttr(axis, i64)}, result_types=[index])

    def verify_(self) -> None:
        require(self.axis.value.data in (0, 1), self, "C1", "the axis must be 0 or 1")


@irdl_op_definition
class FullOp(IRDLOperation):
    """A tile filled with one value."""

    name = "tile.full"

    value = prop_def(FloatAttr.constr(f32))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$value attr-dict `:` type($result)"

    def __init__(self, value: float, type_: VectorType):
        super().__init__(properties={"value": FloatAttr(value, f32)}, result_types=[type_])


@irdl_op_definition
class LoadOp(IRDLOperation):
    """Read a tile at element offsets; elements out of bounds read 0 (E8M0, which has no 0, 2^-127).

    Where the tile's rank is lower than the array's, leading dimensions are indexed at one place.

    C1 one offset for each dimension of the array.
    C2 the tile's rank is at most the array's.
    C3 tile and array have one element type.
    """

    name = "tile.load"

    source = operand_def(MemRefType)
    offsets = var_operand_def(IndexType)
    result = result_def(VectorType)
    traits = traits_def(MemoryReadEffect())
    assembly_format = "$source `[` $offsets `]` attr-dict `:` type($source) `->` type($result)"

    def __init__(self, source: SSAValue, offsets: Sequence[SSAValue], result: VectorType):
        super().__init__(operands=[source, offsets], result_types=[result])

    def verify_(self) -> None:
        verify_access(self, self.source, self.offsets, self.result)


@irdl_op_definition
class StoreOp(IRDLOperation):
    """Write a tile at element offsets; elements out of bounds are dropped.

    C1 one offset for each dimension of the array.
    C2 the tile's rank is at most the array's.
    C3 tile and array have one element type.
    """

    name = "tile.store"

    value = operand_def(VectorType)
    target = operand_def(MemRefType)
    offsets = var_operand_def(IndexType)
    traits = traits_def(MemoryWriteEffect())
    assembly_format = (
        "$value `,` $target `[` $offsets `]` attr-dict `:` type($value) `,` type($target)"
    )

    def __init__(self, value: SSAValue, target: SSAValue, offsets: Sequence[SSAValue]):
        super().__init__(operands=[value, target, offsets])

    def verify_(self) -> None:
        verify_access(self, self.target, self.offsets, self.value)


def verify_access(
    op: Operation, array: SSAValue, offsets: Sequence[SSAValue], tile: SSAValue
) -> None:
    """The constraints that `tile.load` and `tile.store` share."""
    rank = len(shape_of(array))
    require(len(offsets) == rank, op, "C1", f"needs {rank} offsets, has {len(offsets)}")
    require(len(shape_of(tile)) <= rank, op, "C2", "the tile's rank exceeds the array's")
    require(
        element_of(tile) == element_of(array),
        op,
        "C3",
        f"the tile holds {element_of(tile)}, the array {element_of(array)}",
    )


def require_axis(op: Operation, constraint: str, axis: IntegerAttr, tile: SSAValue) -> int:
    """The number of an axis, once the tile is seen to have it."""
    number, rank = axis.value.data, len(shape_of(tile))
    require(0 <= number < rank, op, constraint, f"a tile of rank {rank} has no axis {number}")
    return number


@irdl_op_definition
class UnpackOp(IRDLOperation):
    """Unpack planes of 32-bit words into codes along one axis (word order: gqc.formats.packing).

    C1 the planes are i32 tiles.
    C2 there is one plane for each binary digit of the code's width.
    C3 along the axis, a plane of p bits has (codes · p / 32) words; other dimensions are equal.
    C4 the result's element is in the table of element formats.
    """

    name = "tile.unpack"

    planes = var_operand_def(VectorType)
    axis = prop_def(IntegerAttr.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$planes `axis` `=` $axis attr-dict `:` functional-type(operands, results)"

    def __init__(self, planes: Sequence[SSAValue], axis: int, result: VectorType):
        super().__init__(
            operands=[planes],
            properties={"axis": IntegerAttr(axis, i64)},
            result_types=[result],
        )

    def verify_(self) -> None:
        require(all(element_of(p) == i32 for p in self.planes), self, "C1", "planes must be i32")
        element = ELEMENTS.get(str(element_of(self.result)))
        require(
            element is not None, self, "C4", f"{element_of(self.result)} is not an element format"
        )
        assert element is not None
        widths = planes_of(element.bits)
        require(
            len(widths) == len(self.planes),
            self,
            "C2",
            f"{element.name} has {len(widths)} planes, not {len(self.planes)}",
        )
        shape, axis = shape_of(self.result), require_axis(self, "C3", self.axis, self.result)
        for plane, width in zip(self.planes, widths, strict=True):
            whole = shape[axis] * width % 32 == 0
            message = f"{shape[axis]} codes of {width} bits do not fill whole words"
            require(whole, self, "C3", message)
            expected = tuple(n * width // 32 if i == axis else n for i, n in enumerate(shape))
            require(
                shape_of(plane) == expected,
                self,
                "C3",
                f"a plane of {width} bits must have shape {expected}, not {shape_of(plane)}",
            )


@irdl_op_definition
class CastOp(IRDLOperation):
    """Codes or floats to floats: exact where the result can hold the value, else nearest-even.

    C1 shapes are equal.
    """

    name = "tile.cast"

    source = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, element: Attribute):
        super().__init__(operands=[source], result_types=[VectorType(element, shape_of(source))])

    def verify_(self) -> None:
        require(shape_of(self.source) == shape_of(self.result), self, "C1", "shapes must be equal")


@irdl_op_definition
class RepeatOp(IRDLOperation):
    """Repeat each element `times` along an axis (a scale over its block).

    C1 the result's axis is `times` the source's; other dimensions are equal.
    """

    name = "tile.repeat"

    source = operand_def(VectorType)
    axis = prop_def(IntegerAttr.constr(i64))
    times = prop_def(IntegerAttr.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$source `axis` `=` $axis `times` `=` $times attr-dict `:` type($source) `to` type($result)"
    )

    def __init__(self, source: SSAValue, axis: int, times: int):
        shape = tuple(n * times if i == axis else n for i, n in enumerate(shape_of(source)))
        super().__init__(
            operands=[source],
            properties={"axis": IntegerAttr(axis, i64), "times": IntegerAttr(times, i64)},
            result_types=[VectorType(element_of(source), shape)],
        )

    def verify_(self) -> None:
        axis, times = require_axis(self, "C1", self.axis, self.source), self.times.value.data
        expected = tuple(n * times if i == axis else n for i, n in enumerate(shape_of(self.source)))
        require(
            shape_of(self.result) == expected, self, "C1", f"the result must have shape {expected}"
        )


@irdl_op_definition
class BroadcastOp(IRDLOperation):
    """Broadcast a tile to a larger shape by NumPy's rules.

    C1 aligned at the right, each source dimension is 1 or equal to the result's.
    """

    name = "tile.broadcast"

    source = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, shape: Sequence[int]):
        super().__init__(operands=[source], result_types=[VectorType(element_of(source), shape)])

    def verify_(self) -> None:
        source, result = shape_of(self.source), shape_of(self.result)
        fits = len(source) <= len(result) and all(
            s in (1, r) for s, r in zip(reversed(source), reversed(result), strict=False)
        )
        require(fits, self, "C1", f"{source} does not broadcast to {result}")


@irdl_op_definition
class TransposeOp(IRDLOperation):
    """Transpose a tile of rank 2. C1 the result's shape is the source's, reversed."""

    name = "tile.transpose"

    source = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue):
        super().__init__(
            operands=[source],
            result_types=[VectorType(element_of(source), tuple(reversed(shape_of(source))))],
        )

    def verify_(self) -> None:
        source, result = shape_of(self.source), shape_of(self.result)
        require(
            len(source) == 2 and tuple(reversed(source)) == result,
            self,
            "C1",
            f"{source} does not transpose to {result}",
        )


@irdl_op_definition
class SumOp(IRDLOperation):
    """Sum along an axis in f32; the axis stays, with extent 1. C1 the result's shape says so."""

    name = "tile.sum"

    source = operand_def(VectorType)
    axis = prop_def(IntegerAttr.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source `axis` `=` $axis attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, axis: int):
        shape = tuple(1 if i == axis else n for i, n in enumerate(shape_of(source)))
        super().__init__(
            operands=[source],
            properties={"axis": IntegerAttr(axis, i64)},
            result_types=[VectorType(f32, shape)],
        )

    def verify_(self) -> None:
        axis = require_axis(self, "C1", self.axis, self.source)
        expected = tuple(1 if i == axis else n for i, n in enumerate(shape_of(self.source)))
        require(
            shape_of(self.result) == expected and element_of(self.result) == f32,
            self,
            "C1",
            f"the result must be f32 of shape {expected}",
        )


@irdl_op_definition
class DotOp(IRDLOperation):
    """acc[M, N] + lhs[M, K] · rhs[K, N], products and sums in f32.

    C1 the accumulator is f32.
    C2 the shapes fit.
    C3 lhs and rhs have one element type.
    """

    name = "tile.dot"

    acc = operand_def(VectorType)
    lhs = operand_def(VectorType)
    rhs = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())

    def __init__(self, acc: SSAValue, lhs: SSAValue, rhs: SSAValue):
        super().__init__(operands=[acc, lhs, rhs], result_types=[acc.type])

    @classmethod
    def parse(cls, parser: Parser) -> DotOp:
        operands = parser.parse_comma_separated_list(
            parser.Delimiter.NONE, parser.parse_unresolved_operand
        )
        parser.parse_punctuation(":")
        lhs = parser.parse_type()
        parser.parse_punctuation(",")
        rhs = parser.parse_type()
        parser.parse_punctuation("->")
        result = parser.parse_type()
        resolved = parser.resolve_operands(operands, [result, lhs, rhs], parser.pos)
        return cls(*resolved)

    def print(self, printer: Printer) -> None:
        printer.print_string(" ")
        printer.print_list(self.operands, printer.print_operand)
        printer.print_string(" : ")
        printer.print_list((self.lhs.type, self.rhs.type), printer.print_attribute)
        printer.print_string(" -> ")
        printer.print_attribute(self.result.type)

    def verify_(self) -> None:
        require(
            element_of(self.acc) == f32 and self.acc.type == self.result.type,
            self,
            "C1",
            "the accumulator and the result must be one f32 tile type",
        )
        lhs, rhs, acc = shape_of(self.lhs), shape_of(self.rhs), shape_of(self.acc)
        require(
            len(lhs) == len(rhs) == 2 and lhs[1] == rhs[0] and acc == (lhs[0], rhs[1]),
            self,
            "C2",
            f"{lhs} by {rhs} does not fit {acc}",
        )
        require(element_of(self.lhs) == element_of(self.rhs), self, "C3", "operand types differ")


Tile = Dialect(
    "tile",
    [
        KernelOp,
        ProgramIdOp,
        FullOp,
        LoadOp,
        StoreOp,
        UnpackOp,
        CastOp,
        RepeatOp,
        BroadcastOp,
        TransposeOp,
        SumOp,
        DotOp,
    ],
    [],
)
