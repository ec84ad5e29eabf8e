"""Operations of the `tile` dialect that compute on tiles."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import (
    FloatAttr,
    IntegerAttr,
    StringAttr,
    VectorType,
    f32,
    i32,
    i64,
)
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_prop_def,
    prop_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import (
    Pure,
)

from gqc.dialects.constraints import require
from gqc.dialects.tile_kernel import element_of, require_axis, shape_of
from gqc.formats.elements import ELEMENTS
from gqc.formats.packing import ORDERS, planes_of

PAIRS = "pairs"


@irdl_op_definition
class FullOp(IRDLOperation):
    """A tile filled with one value.

    C1 what fills a tile of i32 is a whole number.
    """

    name = "tile.full"

    value = prop_def(FloatAttr.constr(f32))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$value attr-dict `:` type($result)"

    def __init__(self, value: float, type_: VectorType):
        super().__init__(properties={"value": FloatAttr(value, f32)}, result_types=[type_])

    def verify_(self) -> None:
        value = self.value.value.data
        fits = value.is_integer() or element_of(self.result) != i32
        require(fits, self, "C1", "{} does not fill {}", value, self.result.type)


@irdl_op_definition
class UnpackOp(IRDLOperation):
    """Unpack planes of 32-bit words into codes along one axis.

    `order` is that of the codes in a word, of `gqc.formats.packing.ORDERS`; `pairs` unless given.

    C1 the planes are i32 tiles.
    C2 there are as many planes as the order has for the code's width.
    C3 along the axis, a plane has the words of so many codes; other dimensions are equal.
    C4 the result's element is in the table of element formats.
    C5 the order is in its table.
    """

    name = "tile.unpack"

    planes = var_operand_def(VectorType)
    axis = prop_def(IntegerAttr.constr(i64))
    order = opt_prop_def(StringAttr)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$planes `axis` `=` $axis (`order` `=` $order^)? attr-dict"
        " `:` functional-type(operands, results)"
    )

    def __init__(
        self, planes: Sequence[SSAValue], axis: int, result: VectorType, order: str = PAIRS
    ):
        super().__init__(
            operands=[planes],
            properties={
                "axis": IntegerAttr(axis, i64),
                "order": None if order == PAIRS else StringAttr(order),
            },
            result_types=[result],
        )

    @property
    def order_name(self) -> str:
        """The order of codes in a word."""
        return PAIRS if self.order is None else self.order.data

    def verify_(self) -> None:
        known = self.order_name in ORDERS
        require(known, self, "C5", "{} is no order of codes", self.order_name)
        require(all(element_of(p) == i32 for p in self.planes), self, "C1", "planes must be i32")
        element = ELEMENTS.get(str(element_of(self.result)))
        require(
            element is not None, self, "C4", f"{element_of(self.result)} is not an element format"
        )
        assert element is not None
        planes = planes_of(element.bits, self.order_name)
        require(
            len(planes) == len(self.planes),
            self,
            "C2",
            f"{element.name} has {len(planes)} planes, not {len(self.planes)}",
        )
        shape, axis = shape_of(self.result), require_axis(self, "C3", self.axis, self.result)
        for given, plane in zip(self.planes, planes, strict=True):
            whole = shape[axis] % len(plane.codes) == 0
            message = f"{shape[axis]} codes of {plane.width} bits do not fill whole words"
            require(whole, self, "C3", message)
            expected = tuple(plane.words_of(n) if i == axis else n for i, n in enumerate(shape))
            require(
                shape_of(given) == expected,
                self,
                "C3",
                f"a plane of {plane.width} bits must have shape {expected}, not {shape_of(given)}",
            )


@irdl_op_definition
class CastOp(IRDLOperation):
    """Codes, i32 or floats to floats: exact where the result holds the value, else nearest-even.
    Unsigned codes to bytes: exact.

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
    """Sum along an axis, of integer codes in i32 and of others in f32; it stays, with extent 1.

    C1 the result's type says so.
    """

    name = "tile.sum"

    source = operand_def(VectorType)
    axis = prop_def(IntegerAttr.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source `axis` `=` $axis attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, axis: int):
        super().__init__(
            operands=[source],
            properties={"axis": IntegerAttr(axis, i64)},
            result_types=[VectorType(sum_type(source), reduced(shape_of(source), axis))],
        )

    def verify_(self) -> None:
        require_reduced(self, sum_type(self.source))


@irdl_op_definition
class MaxOp(IRDLOperation):
    """The greatest along an axis of f32, which stays, with extent 1.

    C1 the result's type says so.
    C2 the source is of f32.
    """

    name = "tile.max"

    source = operand_def(VectorType)
    axis = prop_def(IntegerAttr.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source `axis` `=` $axis attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, axis: int):
        super().__init__(
            operands=[source],
            properties={"axis": IntegerAttr(axis, i64)},
            result_types=[VectorType(f32, reduced(shape_of(source), axis))],
        )

    def verify_(self) -> None:
        require(element_of(self.source) == f32, self, "C2", "the source must be f32")
        require_reduced(self, f32)


def require_reduced(op: SumOp | MaxOp, kind: Attribute) -> None:
    """Constraint C1 of a reduction: its axis is one of the source's, and its result follows."""
    axis = require_axis(op, "C1", op.axis, op.source)
    expected = reduced(shape_of(op.source), axis)
    fits = shape_of(op.result) == expected and element_of(op.result) == kind
    require(fits, op, "C1", f"the result must be {kind} of shape {expected}")


def reduced(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """A shape with extent 1 along an axis."""
    return tuple(1 if i == axis else n for i, n in enumerate(shape))


def holds_integers(value: SSAValue) -> bool:
    """Whether a tile holds codes of an integer format."""
    element = ELEMENTS.get(str(element_of(value)))
    return element is not None and element.is_integer


def sum_type(*values: SSAValue) -> Attribute:
    """What sums of elements, or of products of elements, are taken in."""
    return i32 if all(map(holds_integers, values)) else f32


@irdl_op_definition
class DotOp(IRDLOperation):
    """acc[M, N] + lhs[M, K] · rhs[K, N], products and sums in f32, or of integer codes in i32.

    C1 the accumulator is f32, or i32 where both operands are integer codes.
    C2 the shapes fit.
    C3 lhs and rhs have one element type, or are integer codes.
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
        kind = sum_type(self.lhs, self.rhs)
        require(
            element_of(self.acc) == kind and self.acc.type == self.result.type,
            self,
            "C1",
            f"the accumulator and the result must be one {kind} tile type",
        )
        lhs, rhs, acc = shape_of(self.lhs), shape_of(self.rhs), shape_of(self.acc)
        require(
            len(lhs) == len(rhs) == 2 and lhs[1] == rhs[0] and acc == (lhs[0], rhs[1]),
            self,
            "C2",
            f"{lhs} by {rhs} does not fit {acc}",
        )
        same = element_of(self.lhs) == element_of(self.rhs)
        require(same or kind == i32, self, "C3", "operand types differ")
