"""Operations of the `tile` dialect that frame a kernel and reach memory, and what all ops share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import (
    DenseArrayBase,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    SymbolNameConstraint,
    VectorType,
    f32,
    i64,
)
from xdsl.ir import Attribute, Operation, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    VarConstraint,
    base,
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

    What an epilogue reads, [M, N] or [N], is between x, with its scales, and the weight.

    C1 arguments are memrefs.
    C2 the last argument is the output, of rank 2.
    C3 there are two tile sizes, both positive.
    C4 at most one sum of parts is at the top of the body, and none is elsewhere.
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

    @property
    def sum_of_parts(self) -> AddPartsOp | None:
        """Where programs of several parts of K meet, if they do."""
        return next((op for op in self.body.block.ops if isinstance(op, AddPartsOp)), None)

    @property
    def parts(self) -> int:
        """Programs that make a tile of the output together: the extent of the grid's axis 2."""
        return 1 if (total := self.sum_of_parts) is None else total.parts.value.data

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
        sums = [op for op in self.walk() if isinstance(op, AddPartsOp)]
        one = sums == [op for op in (self.sum_of_parts,) if op is not None]
        require(one, self, "C4", "a sum of parts must be the only one, and at the top")

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
    """Position in the grid; axis 0 counts row tiles, axis 1 column tiles, axis 2 the parts that
    `tile.add_parts` adds.

    C1 the axis is 0, 1 or 2.
    """

    name = "tile.program_id"

    axis = prop_def(IntegerAttr.constr(i64))
    result = result_def(IndexType)
    traits = traits_def(Pure())
    assembly_format = "$axis attr-dict"

    def __init__(self, axis: int):
        super().__init__(properties={"axis": IntegerAttr(axis, i64)}, result_types=[index])

    def verify_(self) -> None:
        require(self.axis.value.data in (0, 1, 2), self, "C1", "the axis must be 0, 1 or 2")


@irdl_op_definition
class AddPartsOp(IRDLOperation):
    """The sum of what all programs of one tile have, which differ in axis 2 of the grid, in order.

    What comes after it is done once for a tile. Programs of the tile may run at once or one after
    another: the sum is the same.

    C1 there are two parts or more.
    C2 the tile is f32.
    """

    name = "tile.add_parts"

    T: ClassVar = VarConstraint("T", base(VectorType))

    source = operand_def(T)
    parts = prop_def(IntegerAttr.constr(i64))
    result = result_def(T)
    assembly_format = "$source `parts` `=` $parts attr-dict `:` type($source)"

    def __init__(self, source: SSAValue, parts: int):
        properties = {"parts": IntegerAttr(parts, i64)}
        super().__init__(operands=[source], properties=properties, result_types=[source.type])

    def verify_(self) -> None:
        require(self.parts.value.data > 1, self, "C1", "there must be two parts or more")
        require(element_of(self.source) == f32, self, "C2", "the tile must be f32")


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
