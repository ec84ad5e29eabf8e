"""The `tile` operation that quantizes: floats to codes under scales of blocks."""

from __future__ import annotations

from xdsl.dialects.builtin import StringAttr, VectorType, f32
from xdsl.ir import Attribute, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    prop_def,
    result_def,
    traits_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require
from gqc.dialects.tile_kernel import element_of, shape_of
from gqc.formats.elements import ELEMENTS, SCALES, Element
from gqc.quantizers.microscaling import MICROSCALING_RULES, TWO_LEVEL


@irdl_op_definition
class QcastOp(IRDLOperation):
    """Quantize blocks of 1×B along the last axis: codes, and a scale for each block.

    The scale follows from the block's greatest magnitude by a rule, and from the scale of the whole
    tensor where there is one; codes are the nearest to x / (scale · tensor scale). The meaning is
    that of `gqc.quantizers.microscaling`.

    C1 the tile is f32 of rank 2.
    C2 codes have the tile's shape, and scales its rows; B is the columns over those of the scales.
    C3 the element is in the table of element formats and has both signs.
    C4 the rule is one for scales of this format.
    C5 only scales in E4M3 go with a scale of the tensor.
    """

    name = "tile.qcast"

    source = operand_def(VectorType)
    tensor_scale = opt_operand_def(VectorType(f32, [1]))
    rule = prop_def(StringAttr)
    codes = result_def(VectorType)
    scale = result_def(VectorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$source (`,` $tensor_scale^)? `by` $rule attr-dict "
        "`:` type($source) `->` type($codes) `,` type($scale)"
    )

    def __init__(
        self,
        source: SSAValue,
        tensor_scale: SSAValue | None,
        rule: str,
        element: Attribute,
        scale: Attribute,
        block: int,
    ):
        rows, columns = shape_of(source)
        super().__init__(
            operands=[source, tensor_scale],
            properties={"rule": StringAttr(rule)},
            result_types=[
                VectorType(element, (rows, columns)),
                VectorType(scale, (rows, columns // block)),
            ],
        )

    @property
    def block(self) -> int:
        """B, the elements that share a scale."""
        return shape_of(self.source)[1] // shape_of(self.scale)[1]

    @property
    def formats(self) -> tuple[Element, Element]:
        """Rows of the elements and of the scales in their tables."""
        return ELEMENTS[str(element_of(self.codes))], SCALES[str(element_of(self.scale))]

    def verify_(self) -> None:
        shape, scales = shape_of(self.source), shape_of(self.scale)
        floats = element_of(self.source) == f32 and len(shape) == 2
        require(floats, self, "C1", "the tile must be f32 of rank 2, not {}", self.source.type)
        blocks = len(scales) == 2 and scales[0] == shape[0] and shape[1] % scales[1] == 0
        message = "codes {} and scales {} do not fit {}"
        fits = blocks and shape_of(self.codes) == shape
        require(fits, self, "C2", message, shape_of(self.codes), scales, shape)
        element = ELEMENTS.get(str(element_of(self.codes)))
        signed = element is not None and element.minimum < 0 < element.maximum
        require(signed, self, "C3", "{} has no codes of both signs", element_of(self.codes))
        scale, rule = str(element_of(self.scale)), self.rule.data
        known = rule in MICROSCALING_RULES.get(scale, {})
        require(known, self, "C4", "no rule {} gives scales in {}", rule, scale)
        alone = self.tensor_scale is None or scale in TWO_LEVEL
        require(alone, self, "C5", "scales in {} go without a tensor scale", scale)
