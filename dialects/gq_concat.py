"""Operations of the `gq` dialect that put weights together, before the model runs."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import IntegerAttr, TensorType, i64
from xdsl.ir import SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    opt_prop_def,
    result_def,
    traits_def,
    var_operand_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require


@irdl_op_definition
class ConcatOp(IRDLOperation):
    """The rows of several weights [N, K], or the elements of biases [N], as those of one.

    They follow each other; with a `panel` of P, P rows of the first are followed by P rows of each
    of the others, then by the next P rows of the first, and so on.

    C1 there are sources; they have one element type, and the same shape but for the rows.
    C2 the result has the rows of all of them.
    C3 with a panel, sources have the same number of rows, whole panels of them.
    """

    name = "gq.concat"

    sources = var_operand_def(TensorType)
    panel = opt_prop_def(IntegerAttr.constr(i64))
    result = result_def(TensorType)
    traits = traits_def(Pure())
    assembly_format = (
        "$sources (`panel` `=` $panel^)? attr-dict `:` type($sources) `->` type($result)"
    )

    def __init__(self, sources: Sequence[SSAValue], panel: int | None = None):
        types = [source.type for source in sources]
        assert all(isinstance(type_, TensorType) for type_ in types)
        rows = sum(type_.get_shape()[0] for type_ in types)  # pyright: ignore
        first = types[0]
        assert isinstance(first, TensorType)
        super().__init__(
            operands=[sources],
            properties={"panel": None if panel is None else IntegerAttr(panel, i64)},
            result_types=[TensorType(first.element_type, (rows, *first.get_shape()[1:]))],
        )

    def verify_(self) -> None:
        types = [v.type for v in (*self.sources, self.result) if isinstance(v.type, TensorType)]
        alike = {(type_.element_type, type_.get_shape()[1:]) for type_ in types}
        require(len(types) > 1 and len(alike) == 1, self, "C1", "sources and result differ")
        *rows, total = (type_.get_shape()[0] for type_ in types)
        require(sum(rows) == total, self, "C2", f"{rows} rows are not {total}")
        if self.panel is not None:
            panel = self.panel.value.data
            whole = panel > 0 and len({*rows}) == 1 and rows[0] % panel == 0
            require(whole, self, "C3", f"{rows} rows are no whole panels of {panel}")
