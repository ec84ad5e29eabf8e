"""Assign layouts: pack each quantized operand as the target's kernels read it."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.passes.helpers import matmuls, native_row, weight_of
from gqc.targets import Target, resolve

Packed = dict[tuple[SSAValue, gq.LayoutAttr], SSAValue]
"""The value that each cast gives once it has been through a layout."""


@dataclass(frozen=True)
class AssignLayouts(ModulePass):
    """legal → legal: `gq.pack` (to be folded, or a quantizer's) and `gq.unpack` at each cast.

    Both operands of a native matmul get the layouts of its matrix unit; of an emulated one, the
    weight gets the target's, and activations, decoded where they are quantized, none.
    """

    name = "assign-layouts"

    target: str

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        target = resolve(self.target)
        packed: Packed = {}
        for matmul in matmuls(op):
            if gq.block_scaled(matmul.weight) is not None:
                operands = zip(
                    (matmul.x, matmul.weight), native_layouts(matmul, target), strict=True
                )
                for i, (operand, layout) in enumerate(operands):
                    matmul.operands[i] = through(operand, layout, packed)
            elif isinstance(cast := matmul.weight.owner, gq.DcastOp):
                layout = gq.LayoutAttr(target.layout, target.lanes)
                cast.operands[0] = through(cast.source, layout, packed)


def native_layouts(matmul: gq.MatmulTOp, target: Target) -> tuple[gq.LayoutAttr, gq.LayoutAttr]:
    """The layouts of x and of the weight of a native matmul."""
    row = native_row(matmul, target)
    x = gq.LayoutAttr(gq.LayoutAttr.BYTES, scales=row.scales)
    return x, x if row.layout == gq.LayoutAttr.BYTES else gq.LayoutAttr(row.layout, row.lanes)


def through(value: SSAValue, layout: gq.LayoutAttr, packed: Packed) -> SSAValue:
    """A quantized value, packed and unpacked where it was quantized; once for a layout."""
    cast = value.owner
    assert isinstance(cast, gq.QcastOp | gq.WeightOp | gq.GatherChannelsOp | gq.ConcatOp)
    if (value, layout) not in packed:
        pack = gq.PackOp(value, layout)
        unpack = gq.UnpackOp(pack.parts, layout, value.type)
        for new in (pack, unpack):
            new.location = cast.location
        for part in pack.parts:
            part.name_hint = "packed" if weight_of(value) is not None else "x"
        unpack.weight.name_hint = value.name_hint
        Rewriter.insert_op([pack, unpack], InsertPoint.after(cast))
        packed[value, layout] = unpack.weight
    return packed[value, layout]
