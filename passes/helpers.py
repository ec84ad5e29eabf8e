"""What passes share: replacing an operation keeps its location, and layers have names."""

from __future__ import annotations

from collections.abc import Iterator

from xdsl.dialects.builtin import ModuleOp, StringAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import Operation, SSAValue
from xdsl.pattern_rewriter import PatternRewriter

from gqc.dialects import gq
from gqc.dialects.gq_channels import ChannelOp
from gqc.frontend.locations import module_path
from gqc.integer_dots import integer_dot
from gqc.native import Native, native
from gqc.targets import Target


def replace(rewriter: PatternRewriter, op: Operation, new: list[Operation]) -> None:
    """Replace `op` by `new` (the last gives its results), with its location and name hints."""
    for each in new:
        each.location = op.location
    for old, result in zip(op.results, new[-1].results, strict=True):
        result.name_hint = old.name_hint
    rewriter.replace(op, new)


OnOneTensor = gq.TransposeOp | gq.QcastOp | gq.DcastOp | gq.PackOp | gq.UnpackOp | ChannelOp
"""Operations that give the tensor of their first operand in another form."""


def weight_of(value: SSAValue) -> gq.WeightOp | None:
    """The `gq.weight` that a value is computed from through casts, packing, transposes, and
    operations on channels; the first where several are put together."""
    op = value.owner
    while isinstance(op, OnOneTensor | gq.ConcatOp):
        op = op.operands[0].owner
    return op if isinstance(op, gq.WeightOp) else None


def merged(value: SSAValue) -> list[SSAValue]:
    """The weights that a form of a weight was merged of by `gq.concat`; else the value alone."""
    found = value
    while isinstance(op := found.owner, gq.DcastOp | gq.UnpackOp | gq.PackOp):
        found = op.operands[0]
    return [*op.sources] if isinstance(op, gq.ConcatOp) else [value]


def is_sole_reader(value: SSAValue) -> bool:
    """Whether nothing but the one reader of a value reads the weight that it is a form of."""
    while not isinstance(op := value.owner, gq.WeightOp):
        if not value.has_one_use() or not isinstance(op, Operation):
            return False
        value = op.operands[0]
    return value.has_one_use()


def native_row(matmul: gq.MatmulTOp, target: Target) -> Native:
    """The row of the table by which a target multiplies the operands of a native matmul."""
    x, weight = gq.block_scaled(matmul.x), gq.block_scaled(matmul.weight)
    assert x is not None and weight is not None
    row = native(target.name, x, weight) or integer_dot(target.name, x, weight)
    assert row is not None
    return row


def weight_type(matmul: gq.MatmulTOp) -> gq.BlockScaledType:
    """The type of the weight that a matmul reads dequantized."""
    assert isinstance(matmul.weight.owner, gq.DcastOp)
    type_ = gq.block_scaled(matmul.weight.owner.source)
    assert type_ is not None
    return type_


def layer_name(op: Operation) -> str:
    """Name of the module that an operation came from; without a location, its weight's."""
    if path := module_path(op):
        return path
    values = op.results if isinstance(op, gq.WeightOp) else op.operands
    names = [w.key.removesuffix(".weight") for v in values if (w := weight_of(v))]
    return names[0] if names else op.name


def layer_names(matmul: gq.MatmulTOp, weight: SSAValue) -> list[str]:
    """Names of the layers of a matmul, of which a weight is given; several if they are merged."""
    parts = merged(weight)
    if len(parts) == 1:
        return [layer_name(matmul)]
    return [layer_name(part.owner) for part in parts if isinstance(part.owner, Operation)]


def weight_names(weight: SSAValue) -> list[str]:
    """Names in the side store of the weights that a form of a weight was made of."""
    return [found.key for part in merged(weight) if (found := weight_of(part)) is not None]


def matmuls(module: Operation) -> Iterator[gq.MatmulTOp]:
    """Every `gq.matmul_t` of a module, in order."""
    return (op for op in module.walk() if isinstance(op, gq.MatmulTOp))


def count(number: int, noun: str) -> str:
    """`1 layer`, `2 layers`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def written_buffers(module: ModuleOp) -> set[str]:
    """Names of the buffers that functions of the module write."""
    functions = [f for f in module.ops if isinstance(f, FuncOp) and f.res_attrs is not None]
    written = [attrs.data.get("fx.mutates") for f in functions for attrs in f.res_attrs or ()]
    return {name.data for name in written if isinstance(name, StringAttr)}
