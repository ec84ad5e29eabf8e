"""Operations of the `tile` dialect on codes of narrow floats: as bytes, widened, multiplied."""

from __future__ import annotations

import math
from collections.abc import Sequence

from xdsl.dialects.builtin import DenseArrayBase, VectorType, f32, i8, i64
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require
from gqc.dialects.tile_kernel import element_of, shape_of
from gqc.formats.elements import ELEMENTS, Element

BLOCK_SCALES = ("f8E8M0FNU", "f8E4M3FN")
"""Formats of the scales that matrix instructions read beside the codes."""


def float_format(value: SSAValue) -> Element | None:
    """The row of a tile's element type, if that is a format of floating-point codes."""
    element = ELEMENTS.get(str(element_of(value)))
    return None if element is None or element.is_integer else element


@irdl_op_definition
class BitcastOp(IRDLOperation):
    """Bytes as codes along the last axis, or codes as bytes: low bits first.

    C1 one tile is of bytes (i8), the other of an element format.
    C2 along the last axis both hold equally many bits; other dimensions are equal.
    """

    name = "tile.bitcast"

    source = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, element: Attribute):
        *rest, last = shape_of(source)
        bits = last * bits_of(element_of(source)) // bits_of(element)
        super().__init__(operands=[source], result_types=[VectorType(element, (*rest, bits))])

    def verify_(self) -> None:
        kinds = element_of(self.source), element_of(self.result)
        codes = [kind for kind in kinds if str(kind) in ELEMENTS]
        one_each = i8 in kinds and len(codes) == 1
        require(one_each, self, "C1", "needs bytes (i8) and codes, has {} and {}", *kinds)
        sizes = [
            (*shape_of(v)[:-1], shape_of(v)[-1] * bits_of(element_of(v)))
            for v in (self.source, self.result)
        ]
        message = "{} and {} do not hold the same bits"
        require(sizes[0] == sizes[1], self, "C2", message, self.source.type, self.result.type)


def bits_of(element: Attribute) -> int:
    """Bits of an element of a tile of bytes or codes."""
    return 8 if element == i8 else ELEMENTS[str(element)].bits


@irdl_op_definition
class WidenOp(IRDLOperation):
    """Codes of a floating-point format as codes of a wider one, by moving their bit fields.

    Every value is multiplied by `factor`, the power of two by which the biases differ, exactly:
    2^(source's bias − result's bias).

    C1 shapes are equal.
    C2 both are formats of floats, and the result's fields hold the source's.
    """

    name = "tile.widen"

    source = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, element: Attribute):
        super().__init__(operands=[source], result_types=[VectorType(element, shape_of(source))])

    @property
    def formats(self) -> tuple[Element, Element]:
        """Rows of the source's and of the result's element."""
        return ELEMENTS[str(element_of(self.source))], ELEMENTS[str(element_of(self.result))]

    def verify_(self) -> None:
        require(shape_of(self.source) == shape_of(self.result), self, "C1", "shapes must be equal")
        source, result = float_format(self.source), float_format(self.result)
        fits = (
            source is not None
            and result is not None
            and source.exponent <= result.exponent
            and source.mantissa <= result.mantissa
            and source.specials == "none"
        )
        types = element_of(self.source), element_of(self.result)
        require(fits, self, "C2", "the fields of {} are not among those of {}", *types)


def widening_factor(source: Element, result: Element) -> float:
    """What `tile.widen` multiplies every value by."""
    return math.ldexp(1.0, source.bias - result.bias)


@irdl_op_definition
class ReshapeOp(IRDLOperation):
    """The same elements in the same row-major order. C1 their number is the same."""

    name = "tile.reshape"

    source = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, shape: Sequence[int]):
        super().__init__(operands=[source], result_types=[VectorType(element_of(source), shape)])

    def verify_(self) -> None:
        source, result = shape_of(self.source), shape_of(self.result)
        same = math.prod(source) == math.prod(result)
        require(same, self, "C1", "{} does not reshape to {}", source, result)


@irdl_op_definition
class PermuteOp(IRDLOperation):
    """Axes in another order: axis i of the result is axis order[i] of the source.

    C1 the order names every axis once.
    C2 the result's shape follows from it.
    """

    name = "tile.permute"

    source = operand_def(VectorType)
    order = prop_def(DenseArrayBase.constr(i64))
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = "$source `order` `=` $order attr-dict `:` type($source) `to` type($result)"

    def __init__(self, source: SSAValue, order: Sequence[int]):
        shape = [shape_of(source)[axis] for axis in order]
        super().__init__(
            operands=[source],
            properties={"order": DenseArrayBase.from_list(i64, order)},
            result_types=[VectorType(element_of(source), shape)],
        )

    @property
    def axes(self) -> tuple[int, ...]:
        """The source's axis for each of the result."""
        return tuple(int(axis) for axis in self.order.get_values())

    def verify_(self) -> None:
        shape = shape_of(self.source)
        named = sorted(self.axes) == list(range(len(shape)))
        require(named, self, "C1", "{} is no order of {} axes", self.axes, len(shape))
        expected = tuple(shape[axis] for axis in self.axes)
        fits = shape_of(self.result) == expected
        require(fits, self, "C2", "the result must have shape {}", expected)


@irdl_op_definition
class DotScaledOp(IRDLOperation):
    """acc[M, N] + lhs[M, K] · rhs[K, N], each block of B along K times its two scales; in f32.

    The scales are lhs_scale [M, K/B] and rhs_scale [N, K/B]. Codes out of bounds of a load are 0
    and their scales finite, so that they add nothing.

    C1 the accumulator and the result are one f32 tile type.
    C2 the shapes fit.
    C3 the codes are of formats of floats.
    C4 the scales have one format, E8M0 or E4M3.
    C5 the scales are [M, K/B] and [N, K/B].
    """

    name = "tile.dot_scaled"

    acc = operand_def(VectorType)
    lhs = operand_def(VectorType)
    lhs_scale = operand_def(VectorType)
    rhs = operand_def(VectorType)
    rhs_scale = operand_def(VectorType)
    result = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$acc `,` $lhs `,` $lhs_scale `,` $rhs `,` $rhs_scale attr-dict `:` "
        "functional-type(operands, results)"
    )

    def __init__(
        self,
        acc: SSAValue,
        lhs: SSAValue,
        lhs_scale: SSAValue,
        rhs: SSAValue,
        rhs_scale: SSAValue,
    ):
        operands = [acc, lhs, lhs_scale, rhs, rhs_scale]
        super().__init__(operands=operands, result_types=[acc.type])

    @property
    def block(self) -> int:
        """B, the elements along K that share a scale."""
        return shape_of(self.lhs)[1] // shape_of(self.lhs_scale)[1]

    def verify_(self) -> None:
        one = element_of(self.acc) == f32 and self.acc.type == self.result.type
        require(one, self, "C1", "the accumulator and the result must be one f32 tile type")
        lhs, rhs, acc = shape_of(self.lhs), shape_of(self.rhs), shape_of(self.acc)
        fit = len(lhs) == len(rhs) == 2 and lhs[1] == rhs[0] and acc == (lhs[0], rhs[1])
        require(fit, self, "C2", "{} by {} does not fit {}", lhs, rhs, acc)
        for codes in (self.lhs, self.rhs):
            known = float_format(codes) is not None
            require(known, self, "C3", "{} is no format of floats", element_of(codes))
        left, right = element_of(self.lhs_scale), element_of(self.rhs_scale)
        require(
            left == right and str(left) in BLOCK_SCALES,
            self,
            "C4",
            "scales must be of one format of {}, not {} and {}",
            ", ".join(BLOCK_SCALES),
            left,
            right,
        )
        scales = shape_of(self.lhs_scale), shape_of(self.rhs_scale)
        blocks = scales[0][-1]
        require(
            scales == ((lhs[0], blocks), (rhs[1], blocks)) and lhs[1] % blocks == 0,
            self,
            "C5",
            "scales {} and {} do not fit {} by {}",
            *scales,
            lhs,
            rhs,
        )
