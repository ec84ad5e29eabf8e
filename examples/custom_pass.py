"""A pass of your own: layers of few rows cost little memory, so give them more bits.

This file is gqc-opt with one more pass; custom_pass.mlir beside it is the pass's test.
"""

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

from gqc.dialects import gq
from gqc.schemes import preset
from gqc.tools.gqc_opt import GqcOptMain, main


@dataclass(frozen=True)
class WidenSmallLayers(ModulePass):
    """grouped → grouped. Weights with at most `rows` rows are quantized by `scheme` instead."""

    name = "widen-small-layers"
    rows: int = 256
    scheme: str = "int8_g32"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        type_ = preset(self.scheme).type()
        for cast in [op for op in op.walk() if isinstance(op, gq.QcastOp)]:
            if gq.tensor_shape(cast.source)[0] <= self.rows:
                how = (cast.quantizer.data, cast.scale_rule.data)
                Rewriter.replace_op(cast, gq.QcastOp(cast.source, *how, type_))


class Opt(GqcOptMain):
    def register_all_passes(self) -> None:
        super().register_all_passes()
        self.register_pass(WidenSmallLayers.name, lambda: WidenSmallLayers)


if __name__ == "__main__":
    main(Opt)
