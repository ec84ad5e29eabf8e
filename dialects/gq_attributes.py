"""Types and attributes of the `gq` dialect: formats, layouts, decisions, schedules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    ArrayAttr,
    IntAttr,
    IntegerType,
    StringAttr,
    TensorType,
    f32,
)
from xdsl.dialects.builtin import NoneAttr as Absent
from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser
from xdsl.printer import Printer
from xdsl.utils.exceptions import VerifyException

from gqc.dialects.constraints import require
from gqc.dialects.gq_codebooks import parse_element
from gqc.formats.byte_layouts import SCALE_PLACES, ByteLayout
from gqc.formats.elements import ELEMENTS, SCALES, Element
from gqc.formats.layouts import LAYOUTS, Layout
from gqc.formats.zero_modes import ZERO_MODES, ZeroMode
from gqc.targets import ANY


@irdl_attr_definition
class BlockScaledType(ParametrizedAttribute, TypeAttribute):
    """Element type of a tensor whose elements share a scale by blocks.

    `!gq.block_scaled<1x32 : f16 : ui4, zero = f16, zero_mode = rescale>`: the block's extent in
    each dimension (`?` is the whole dimension), the scale's format, the element's format, and where
    they exist a zero point (by mode, `gqc.formats.zero_modes.ZERO_MODES`) and a scale of the
    whole tensor.

    C1 block extents are positive or `?`.
    C2 the element is in the table of elements.
    C3 the scale is in the table of scales.
    C4 there is a zero point exactly if the zero mode is not none.
    C5 the zero point of mode quantized has the element's format, an unsigned integer.
    C6 the zero point of modes original and rescale is in the table of scales.
    C7 only integer elements have zero points.
    C8 the tensor scale is f32.
    """

    name = "gq.block_scaled"

    block: ArrayAttr[IntAttr]
    scale: Attribute
    element: Attribute
    zero: Attribute
    zero_mode: StringAttr
    tensor_scale: Attribute

    def __init__(
        self,
        block: Sequence[int],
        scale: Attribute,
        element: Attribute,
        zero: Attribute | None = None,
        zero_mode: str = "none",
        tensor_scale: Attribute | None = None,
    ):
        super().__init__(
            ArrayAttr([IntAttr(n) for n in block]),
            scale,
            element,
            zero or Absent(),
            StringAttr(zero_mode),
            tensor_scale or Absent(),
        )

    @property
    def format(self) -> Element:
        """The element's row in the table of elements."""
        return ELEMENTS[str(self.element)]

    @property
    def mode(self) -> ZeroMode:
        """The zero mode's row in the table of zero modes."""
        return ZERO_MODES[self.zero_mode.data]

    @property
    def has_zero(self) -> bool:
        return self.zero_mode.data != "none"

    def is_exact_in(self, element: str) -> bool:
        """Whether a float type holds code · scale, which is the weight, without rounding."""
        bits = self.format.significant + SCALES[str(self.scale)].significant
        return not self.has_zero and bits <= SCALES[element].significant

    def codes_are_exact_in(self, element: str) -> bool:
        """Whether products in an element type need no wider one for what codes stand for before
        scaling: a float type holds it, or integers are multiplied as they are."""
        return element not in SCALES or self.format.significant <= SCALES[element].significant

    @property
    def has_tensor_scale(self) -> bool:
        return not isinstance(self.tensor_scale, Absent)

    @property
    def text(self) -> str:
        """Its parameters: what stands between `!gq.block_scaled<` and `>`."""
        return str(self).removeprefix(f"!{self.name}<").removesuffix(">")

    def with_block(self, block: Sequence[int]) -> BlockScaledType:
        """The same formats in other blocks."""
        rest = (self.scale, self.element, self.zero, self.zero_mode, self.tensor_scale)
        return BlockScaledType.new([ArrayAttr([IntAttr(n) for n in block]), *rest])

    def block_of(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The block's extents in a tensor of this shape, `?` filled in."""
        return tuple(
            n if b.data == DYNAMIC_INDEX else b.data for b, n in zip(self.block, shape, strict=True)
        )

    def scale_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the scales of a tensor of this shape: one for each block."""
        return tuple(n // b for n, b in zip(shape, self.block_of(shape), strict=True))

    def bits_per_element(self, shape: Sequence[int]) -> float:
        """Storage for one element in bits, scales and zero points included."""
        block = 1
        for extent in self.block_of(shape):
            block *= extent
        shared = SCALES[str(self.scale)].bits
        if self.has_zero:
            shared += {**ELEMENTS, **SCALES}[str(self.zero)].bits
        return self.format.bits + shared / block

    def problem(self) -> tuple[str, str] | None:
        """The first constraint that fails, and how; None for a valid type."""
        element, scale = str(self.element), str(self.scale)
        zero, mode = str(self.zero), self.zero_mode.data
        if not all(b.data > 0 or b.data == DYNAMIC_INDEX for b in self.block):
            return "C1", "block extents must be positive or `?`"
        if element not in ELEMENTS:
            return "C2", f"{element} is not an element format ({', '.join(ELEMENTS)})"
        if scale not in SCALES:
            return "C3", f"{scale} is not a scale format ({', '.join(SCALES)})"
        if mode not in ZERO_MODES or isinstance(self.zero, Absent) == self.has_zero:
            return "C4", f"zero mode {mode} does not go with zero point {zero}"
        if self.mode.integer and not zero == element == f"ui{self.format.bits}":
            return "C5", f"element and zero point must be one unsigned format: {element}, {zero}"
        if self.has_zero and not self.mode.integer and zero not in SCALES:
            return "C6", f"{zero} is not a format of zero points ({', '.join(SCALES)})"
        if self.has_zero and not self.format.is_integer:
            return "C7", f"{element} has no zero point"
        if self.has_tensor_scale and self.tensor_scale != f32:
            return "C8", f"the tensor scale must be f32, not {self.tensor_scale}"
        return None

    def verify(self) -> None:
        if (problem := self.problem()) is not None:
            raise VerifyException("{} {}: {}".format(self.name, *problem))

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        start = parser.pos
        options: dict[str, Attribute] = {}
        with parser.in_angle_brackets():
            block = [parser.parse_shape_dimension()]
            while parser.parse_optional_punctuation(":") is None:
                parser.parse_shape_delimiter()
                block.append(parser.parse_shape_dimension())
            scale = parser.parse_type()
            parser.parse_punctuation(":")
            element = parse_element(parser)
            while parser.parse_optional_punctuation(",") is not None:
                key = parser.parse_keyword_in(("zero", "zero_mode", "global"))
                parser.parse_punctuation("=")
                is_mode = key == "zero_mode"
                options[key] = (
                    StringAttr(parser.parse_keyword_in(ZERO_MODES))
                    if is_mode
                    else parser.parse_type()
                )
        parameters: list[Attribute] = [
            ArrayAttr([IntAttr(n) for n in block]),
            scale,
            element,
            options.get("zero", Absent()),
            options.get("zero_mode", StringAttr("none")),
            options.get("global", Absent()),
        ]
        # A verifier that fails while parsing would escape as a traceback: report it at its place.
        try:
            cls.new(parameters)
        except VerifyException as error:
            parser.raise_error(str(error), start)
        return parameters

    def print_parameters(self, printer: Printer) -> None:
        block = "x".join("?" if b.data == DYNAMIC_INDEX else str(b.data) for b in self.block)
        with printer.in_angle_brackets():
            printer.print_string(f"{block} : {self.scale} : {self.element}")
            if self.has_zero:
                printer.print_string(f", zero = {self.zero}, zero_mode = {self.zero_mode.data}")
            if self.has_tensor_scale:
                printer.print_string(f", global = {self.tensor_scale}")


@irdl_attr_definition
class LayoutAttr(ParametrizedAttribute):
    """How a packed tensor lies in memory.

    `#gq.layout<lane_words, lanes = 64>`: a row of `gqc.formats.layouts.LAYOUTS` and its lanes.
    `#gq.layout<bytes, scales = swizzle_32_4_4>`: codes in bytes, and a row of
    `gqc.formats.byte_layouts.SCALE_PLACES`, for activations too.

    C1 the kind is in the table of layouts, or `bytes`.
    C2 lanes are positive.
    C3 the place of scales is in its table for `bytes`, and absent otherwise.
    """

    name = "gq.layout"
    BYTES: ClassVar = "bytes"

    kind: StringAttr
    lanes: IntAttr
    scales: StringAttr

    def __init__(self, kind: str, lanes: int = 1, scales: str = ""):
        super().__init__(StringAttr(kind), IntAttr(lanes), StringAttr(scales))

    def verify(self) -> None:
        kind, scales, known = self.kind.data, self.scales.data, (*LAYOUTS, self.BYTES)
        require(kind in known, self.name, "C1", f"{self.kind} is not one of {', '.join(known)}")
        require(self.lanes.data > 0, self.name, "C2", "lanes must be positive")
        placed = scales in SCALE_PLACES if kind == self.BYTES else not scales
        require(placed, self.name, "C3", f"scales of {kind} do not lie {scales or 'anywhere'}")

    @property
    def row(self) -> Layout | ByteLayout:
        """What packs and unpacks."""
        if self.kind.data == self.BYTES:
            return ByteLayout(SCALE_PLACES[self.scales.data])
        return LAYOUTS[self.kind.data]

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            kind = parser.parse_keyword_in((*LAYOUTS, cls.BYTES))
            lanes, scales = 1, "linear" if kind == cls.BYTES else ""
            if parser.parse_optional_punctuation(",") is not None:
                key = parser.parse_keyword_in(("scales",) if kind == cls.BYTES else ("lanes",))
                parser.parse_punctuation("=")
                if key == "scales":
                    scales = parser.parse_keyword_in(SCALE_PLACES)
                else:
                    lanes = parser.parse_integer(allow_negative=False)
        return [StringAttr(kind), IntAttr(lanes), StringAttr(scales)]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(self.kind.data)
            if self.lanes.data > 1:
                printer.print_string(f", lanes = {self.lanes.data}")
            if self.scales.data:
                printer.print_string(f", scales = {self.scales.data}")

    def part_types(self, weight: TensorType) -> list[TensorType]:
        """Types of the parts of a packed tensor, in the order of `parts` of its row."""
        type_ = weight.get_element_type()
        assert isinstance(type_, BlockScaledType)
        parts = self.row.parts(type_)
        shapes = self.row.part_shapes(type_, weight.get_shape(), self.lanes.data)
        formats = {"scale": type_.scale, "zero": type_.zero, "tensor_scale": type_.tensor_scale}
        return [
            TensorType(IntegerType(part.word) if part.word else formats[part.kind], shape)
            for part, shape in zip(parts, shapes, strict=True)
        ]


@irdl_attr_definition
class DecisionAttr(ParametrizedAttribute):
    """What was decided for a matmul, and why: `#gq.decision<emulated, "no int4 matrix unit">`.

    C1 the kind is native, emulated or kept.
    """

    name = "gq.decision"
    KINDS: ClassVar = ("native", "emulated", "kept")

    kind: StringAttr
    reason: StringAttr

    def __init__(self, kind: str, reason: str):
        super().__init__(StringAttr(kind), StringAttr(reason))

    def verify(self) -> None:
        require(self.kind.data in self.KINDS, self.name, "C1", f"no such decision: {self.kind}")

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        with parser.in_angle_brackets():
            kind = parser.parse_keyword_in(cls.KINDS)
            parser.parse_punctuation(",")
            return [StringAttr(kind), StringAttr(parser.parse_str_literal())]

    def print_parameters(self, printer: Printer) -> None:
        with printer.in_angle_brackets():
            printer.print_string(f"{self.kind.data}, ")
            printer.print_string_literal(self.reason.data)


@irdl_attr_definition
class ScheduleAttr(ParametrizedAttribute):
    """One bucket of row counts and the tile that serves it.

    `#gq.schedule<rows = 16, tile = 64x128x64, scale = before, warps = 4, stages = 3>`: up to 16
    rows, output tiles of 64 rows by 128 columns, 64 of K in a step, the scale applied before or
    after the dot, or in it, by the matrix `unit`. Rows of the last bucket are unbounded (`*`). With
    `, panel = 256` at the end, weights are decoded to memory first, once for each 256 rows; with
    `, parts = 4`, four programs make a tile, each of a quarter of K.

    C1 the tile has three sizes, and sizes are positive; that of a panel may be 0: there is none.
    C2 the scale is applied `before` or `after` the dot, or by the `unit`.
    """

    name = "gq.schedule"
    SCALES: ClassVar = ("before", "after", "unit")

    rows: IntAttr
    tile: ArrayAttr[IntAttr]
    scale: StringAttr
    warps: IntAttr
    stages: IntAttr
    panel: IntAttr
    parts: IntAttr

    def __init__(
        self,
        rows: int,
        tile: tuple[int, int, int],
        scale: str,
        warps: int = 1,
        stages: int = 1,
        panel: int = 0,
        parts: int = 1,
    ):
        super().__init__(
            IntAttr(rows),
            ArrayAttr([IntAttr(n) for n in tile]),
            StringAttr(scale),
            IntAttr(warps),
            IntAttr(stages),
            IntAttr(panel),
            IntAttr(parts),
        )

    @property
    def sizes(self) -> tuple[int, int, int]:
        """(BM, BN, BK)."""
        m, n, k = (n.data for n in self.tile)
        return m, n, k

    @property
    def tiling(self) -> tuple[Attribute, ...]:
        """All but the rows: what a kernel is built by."""
        return self.parameters[1:]

    def verify(self) -> None:
        require(len(self.tile) == 3, self.name, "C1", "the tile must have three sizes, MxNxK")
        counts = (*self.sizes, self.parts.data)
        positive = min(counts) > 0 and (self.rows.data > 0 or self.rows.data == ANY)
        require(positive and self.panel.data >= 0, self.name, "C1", "sizes must be positive")
        require(
            self.scale.data in self.SCALES,
            self.name,
            "C2",
            f"the scale is applied before or after the dot or by the unit, not {self.scale.data}",
        )

    @classmethod
    def parse_parameters(cls, parser: AttrParser) -> list[Attribute]:
        def option(key: str) -> None:
            parser.parse_punctuation(",")
            parser.parse_keyword(key)
            parser.parse_punctuation("=")

        with parser.in_angle_brackets():
            parser.parse_keyword("rows")
            parser.parse_punctuation("=")
            unbounded = parser.parse_optional_punctuation("*") is not None
            rows = ANY if unbounded else parser.parse_integer(allow_negative=False)
            option("tile")
            tile = parser.parse_dimension_list()
            option("scale")
            scale = parser.parse_keyword_in(cls.SCALES)
            option("warps")
            warps = parser.parse_integer()
            option("stages")
            stages = parser.parse_integer()
            last = {"panel": 0, "parts": 1}
            while parser.parse_optional_punctuation(","):
                key = parser.parse_keyword_in(tuple(last))
                parser.parse_punctuation("=")
                last[key] = parser.parse_integer()
        return [
            IntAttr(rows),
            ArrayAttr([IntAttr(n) for n in tile]),
            StringAttr(scale),
            IntAttr(warps),
            IntAttr(stages),
            *map(IntAttr, last.values()),
        ]

    def print_parameters(self, printer: Printer) -> None:
        rows = "*" if self.rows.data == ANY else str(self.rows.data)
        tile = "x".join(map(str, self.sizes))
        with printer.in_angle_brackets():
            printer.print_string(
                f"rows = {rows}, tile = {tile}, scale = {self.scale.data}, "
                f"warps = {self.warps.data}, stages = {self.stages.data}"
            )
            if self.panel.data:
                printer.print_string(f", panel = {self.panel.data}")
            if self.parts.data > 1:
                printer.print_string(f", parts = {self.parts.data}")
