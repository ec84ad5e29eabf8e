"""The `gq` dialect: block-scaled tensors and what is computed on them.

One element type says every grouped-quantized format; one op, `gq.matmul_t`, says every quantized
linear. Scales are values or weight parts, never constants inside types.
"""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import (
    AnyFloat,
    ArrayAttr,
    FlatSymbolRefAttrConstr,
    StringAttr,
    SymbolRefAttr,
    TensorType,
    f32,
)
from xdsl.ir import Attribute, Dialect, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    operand_def,
    opt_operand_def,
    opt_prop_def,
    opt_result_def,
    prop_def,
    result_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require
from gqc.dialects.gq_attributes import BlockScaledType, DecisionAttr, LayoutAttr, ScheduleAttr
from gqc.dialects.gq_channels import GatherChannelsOp, RotateChannelsOp, ScaleChannelsOp
from gqc.dialects.gq_codebooks import CODEBOOK_TYPES
from gqc.dialects.gq_concat import ConcatOp
from gqc.dialects.gq_fused import FusedOp, YieldOp
from gqc.dialects.gq_launch import LaunchOp
from gqc.dialects.gq_materialize import MaterializeOp, StoreOp

TENSOR_SCALE = TensorType(f32, [1])
"""Type of the scale of a whole tensor."""


def block_scaled(value: SSAValue | Attribute) -> BlockScaledType | None:
    """The block-scaled element type of a tensor value or type, or None."""
    type_ = value.type if isinstance(value, SSAValue) else value
    element = type_.get_element_type() if isinstance(type_, TensorType) else None
    return element if isinstance(element, BlockScaledType) else None


def tensor_shape(value: SSAValue | Attribute) -> tuple[int, ...]:
    """Shape of a tensor value or type; `DYNAMIC_INDEX` stands for a dynamic dimension."""
    type_ = value.type if isinstance(value, SSAValue) else value
    assert isinstance(type_, TensorType)
    return type_.get_shape()


def element_type(value: SSAValue | Attribute) -> Attribute:
    """Element type of a tensor value or type."""
    type_ = value.type if isinstance(value, SSAValue) else value
    assert isinstance(type_, TensorType)
    return type_.get_element_type()


def require_blocks(op: IRDLOperation, constraint: str, value: SSAValue) -> BlockScaledType:
    """The value's block-scaled type, once its blocks are seen to divide its shape."""
    type_, shape = block_scaled(value), tensor_shape(value)
    require(type_ is not None, op, constraint, "{} is not block-scaled", value.type)
    assert type_ is not None
    require(
        len(type_.block) == len(shape)
        and all(n % b == 0 for n, b in zip(shape, type_.block_of(shape), strict=True)),
        op,
        constraint,
        "blocks do not divide {}",
        value.type,
    )
    return type_


def require_floats(op: IRDLOperation, constraint: str, value: SSAValue) -> None:
    """Refuse a tensor of anything but floats."""
    is_float = isinstance(element_type(value), AnyFloat)
    require(is_float, op, constraint, "{} does not hold floats", value.type)


@irdl_op_definition
class WeightOp(IRDLOperation):
    """A tensor of the side store, by its fully qualified name.

    Three unit attributes say what the tensor alone does not: `buffer`, it is no parameter of the
    model; `shared`, something that is no linear layer reads it too, outside of this module;
    `router`, it chooses experts.

    C1 the shape is static.
    """

    name = "gq.weight"

    fqn = prop_def(FlatSymbolRefAttrConstr)
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = "$fqn attr-dict `:` type($result)"

    def __init__(self, fqn: str, type_: TensorType):
        super().__init__(properties={"fqn": SymbolRefAttr(fqn)}, result_types=[type_])

    @property
    def key(self) -> str:
        """The fully qualified name."""
        return self.fqn.root_reference.data

    def verify_(self) -> None:
        require(min(tensor_shape(self.result), default=1) >= 0, self, "C1", "weights are static")


@irdl_op_definition
class TensorScaleOp(IRDLOperation):
    """The scale of a whole activation, the second level of its format: taken when the model runs.

    It is float32's greatest magnitude of x, over the greatest that codes and block scales can
    stand for (NVFP4: 448 times 6); inf and NaN are left out (`formats.microscaling`).

    C1 the format has a tensor scale.
    C2 the source holds floats.
    """

    name = "gq.tensor_scale"

    source = operand_def(TensorType)
    format = prop_def(BlockScaledType)
    result = result_def(TENSOR_SCALE)
    traits = traits_def(Pure())
    assembly_format = "$source `for` $format attr-dict `:` type($source)"

    def __init__(self, source: SSAValue, format: BlockScaledType):
        super().__init__(
            operands=[source], properties={"format": format}, result_types=[TENSOR_SCALE]
        )

    def verify_(self) -> None:
        has_scale = self.format.has_tensor_scale
        require(has_scale, self, "C1", "{} has no tensor scale", self.format)
        require_floats(self, "C2", self.source)


@irdl_op_definition
class QcastOp(IRDLOperation):
    """Quantize a float tensor, weight or activation, to a block-scaled one.

    Where the type has a tensor scale, `scale` gives it; without, it is taken from the tensor.

    C1 the result's blocks divide its shape.
    C2 shapes are equal.
    C3 the source holds floats.
    C4 a scale is given only where the type has a tensor scale.
    """

    name = "gq.qcast"

    source = operand_def(TensorType)
    tensor_scale = opt_operand_def(TENSOR_SCALE)
    quantizer = prop_def(StringAttr)
    scale_rule = prop_def(StringAttr)
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$source (`scale` $tensor_scale^)? `by` $quantizer $scale_rule attr-dict"
        " `:` type($source) `->` type($result)"
    )

    def __init__(
        self,
        source: SSAValue,
        quantizer: str,
        scale_rule: str,
        type_: BlockScaledType,
        tensor_scale: SSAValue | None = None,
    ):
        super().__init__(
            operands=[source, tensor_scale],
            properties={"quantizer": StringAttr(quantizer), "scale_rule": StringAttr(scale_rule)},
            result_types=[TensorType(type_, tensor_shape(source))],
        )

    def verify_(self) -> None:
        type_ = require_blocks(self, "C1", self.result)
        require(tensor_shape(self.source) == tensor_shape(self.result), self, "C2", "shapes differ")
        require_floats(self, "C3", self.source)
        fits = self.tensor_scale is None or type_.has_tensor_scale
        require(fits, self, "C4", "{} has no tensor scale", type_)


@irdl_op_definition
class DcastOp(IRDLOperation):
    """Dequantize a block-scaled tensor: code times scale (and zero point), rounded to the result.

    A tensor scale is no part of that product, which would then need more digits than 16-bit floats
    have: it is a second result, a factor of what is computed from the first.

    C1 the source's blocks divide its shape.
    C2 shapes are equal.
    C3 the result holds floats.
    C4 there is a second result where the type has a tensor scale, and only there.
    """

    name = "gq.dcast"

    source = operand_def(TensorType)
    result = result_def(TensorType)
    tensor_scale = opt_result_def(TENSOR_SCALE)
    traits = traits_def(Pure())
    assembly_format = (
        "$source attr-dict `:` type($source) `->` type($result) (`,` type($tensor_scale)^)?"
    )

    def __init__(self, source: SSAValue, element: Attribute):
        type_ = block_scaled(source)
        scale = TENSOR_SCALE if type_ is not None and type_.has_tensor_scale else None
        super().__init__(
            operands=[source], result_types=[TensorType(element, tensor_shape(source)), scale]
        )

    def verify_(self) -> None:
        type_ = require_blocks(self, "C1", self.source)
        require(tensor_shape(self.source) == tensor_shape(self.result), self, "C2", "shapes differ")
        require_floats(self, "C3", self.result)
        fits = type_.has_tensor_scale == (self.tensor_scale is not None)
        require(fits, self, "C4", "a tensor scale of {} is a second result", self.source.type)


@irdl_op_definition
class TransposeOp(IRDLOperation):
    """Transpose a weight of rank 2, before it is quantized.

    C1 the result's shape is the source's, reversed.
    C2 source and result hold one type of floats.
    """

    name = "gq.transpose"

    source = operand_def(TensorType)
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = "$source attr-dict `:` type($source) `->` type($result)"

    def __init__(self, source: SSAValue):
        n, k = tensor_shape(source)
        super().__init__(operands=[source], result_types=[TensorType(element_type(source), (k, n))])

    def verify_(self) -> None:
        source, result = tensor_shape(self.source), tensor_shape(self.result)
        require(
            len(source) == 2 and source[::-1] == result,
            self,
            "C1",
            "{} does not transpose to {}",
            self.source.type,
            self.result.type,
        )
        require_floats(self, "C2", self.source)
        same = element_type(self.source) == element_type(self.result)
        require(same, self, "C2", "elements differ")


@irdl_op_definition
class MatmulTOp(IRDLOperation):
    """x[…, K] · w[N, K]ᵀ (· alphas) (+ bias[N]): every linear layer.

    Block-scaled operands count as what they stand for. `alphas` are scalars: the tensor scales of
    operands that were dequantized apart from them.

    C1 the weight has rank 2 and a static shape.
    C2 the last dimensions of x and w are equal.
    C3 the result's shape is that of x with N for K.
    C4 the bias has shape [N].
    C5 the blocks of block-scaled operands divide their shapes.
    """

    name = "gq.matmul_t"

    x = operand_def(TensorType)
    weight = operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    alphas = var_operand_def(TENSOR_SCALE)
    decision = opt_prop_def(DecisionAttr)
    schedules = opt_prop_def(ArrayAttr)
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$x `,` $weight (`bias` $bias^)? (`alphas` `(` $alphas^ `)`)?"
        " (`decision` $decision^)? (`schedules` $schedules^)? attr-dict"
        " `:` `(` type($x) `,` type($weight) (`,` type($bias)^)? `)` `->` type($result)"
    )

    def __init__(
        self,
        x: SSAValue,
        weight: SSAValue,
        bias: SSAValue | None,
        result: Attribute,
        decision: DecisionAttr | None = None,
        schedules: ArrayAttr | None = None,
        alphas: Sequence[SSAValue] = (),
    ):
        super().__init__(
            operands=[x, weight, bias, alphas],
            properties={"decision": decision, "schedules": schedules},
            result_types=[result],
        )

    def verify_(self) -> None:
        x, w, y = (tensor_shape(v) for v in (self.x, self.weight, self.result))
        x_type, w_type, y_type = self.x.type, self.weight.type, self.result.type
        require(len(w) == 2 and min(w) > 0, self, "C1", "the weight is {}", w_type)
        fits = len(x) > 0 and x[-1] == w[1]
        require(fits, self, "C2", "x is {}, the weight {}", x_type, w_type)
        expected = TensorType(element_type(y_type), (*x[:-1], w[0]))
        fits = y == expected.get_shape()
        require(fits, self, "C3", "the result is {}, not {}", y_type, expected)
        if self.bias is not None:
            fits = tensor_shape(self.bias) == (w[0],)
            require(fits, self, "C4", "the bias is {}, not one of [{}]", self.bias.type, w[0])
        for operand in (self.x, self.weight):
            if block_scaled(operand) is not None:
                require_blocks(self, "C5", operand)


def verify_parts(op: PackOp | UnpackOp, weight: SSAValue, parts: Sequence[SSAValue]) -> None:
    """The constraints that `gq.pack` and `gq.unpack` share."""
    type_, shape = require_blocks(op, "C1", weight), tensor_shape(weight)
    of_one_row = all(rows == 1 for rows in type_.block_of(shape)[:-1])
    weight_like = len(shape) == 2 and min(shape) > 0
    require(
        of_one_row and (weight_like or op.layout.kind.data == LayoutAttr.BYTES),
        op,
        "C3",
        "the weight must be static, of rank 2, in blocks of one row, not {}",
        weight.type,
    )
    assert isinstance(weight.type, TensorType)
    expected = op.layout.part_types(weight.type)
    require(
        [p.type for p in parts] == expected,
        op,
        "C2",
        f"parts must be ({', '.join(['{}'] * len(expected))})",
        *expected,
    )


@irdl_op_definition
class PackOp(IRDLOperation):
    """Pack a block-scaled weight into the parts of a layout: planes of words, scale, zero point,
    tensor scale.

    C1 the weight is block-scaled and its blocks divide its shape.
    C2 the parts are those of the layout.
    C3 the weight is static, of rank 2, in blocks of one row.
    """

    name = "gq.pack"

    weight = operand_def(TensorType)
    layout = prop_def(LayoutAttr)
    parts = var_result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = "$weight `layout` $layout attr-dict `:` type($weight) `->` type($parts)"

    def __init__(self, weight: SSAValue, layout: LayoutAttr):
        assert isinstance(weight.type, TensorType)
        super().__init__(
            operands=[weight],
            properties={"layout": layout},
            result_types=[layout.part_types(weight.type)],
        )

    def verify_(self) -> None:
        verify_parts(self, self.weight, self.parts)


@irdl_op_definition
class UnpackOp(IRDLOperation):
    """Read the parts of a layout as the block-scaled weight that they hold: `gq.pack` undone.

    C1 the weight is block-scaled and its blocks divide its shape.
    C2 the parts are those of the layout.
    C3 the weight is static, of rank 2, in blocks of one row.
    """

    name = "gq.unpack"

    parts = var_operand_def(TensorType)
    layout = prop_def(LayoutAttr)
    weight = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = "$parts `layout` $layout attr-dict `:` type($parts) `->` type($weight)"

    def __init__(self, parts: Sequence[SSAValue], layout: LayoutAttr, weight: Attribute):
        super().__init__(operands=[parts], properties={"layout": layout}, result_types=[weight])

    def verify_(self) -> None:
        verify_parts(self, self.weight, self.parts)


Gq = Dialect(
    "gq",
    [
        WeightOp,
        TensorScaleOp,
        QcastOp,
        DcastOp,
        TransposeOp,
        MatmulTOp,
        PackOp,
        UnpackOp,
        LaunchOp,
        FusedOp,
        YieldOp,
        ScaleChannelsOp,
        GatherChannelsOp,
        RotateChannelsOp,
        ConcatOp,
        MaterializeOp,
        StoreOp,
    ],
    [BlockScaledType, LayoutAttr, DecisionAttr, ScheduleAttr, *map(type, CODEBOOK_TYPES.values())],
)
