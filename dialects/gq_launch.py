"""The operation of the `gq` dialect that runs kernels."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import (
    ArrayAttr,
    DenseArrayBase,
    SymbolRefAttr,
    TensorType,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue
from xdsl.irdl import (
    AttrSizedOperandSegments,
    IRDLOperation,
    irdl_op_definition,
    opt_operand_def,
    opt_region_def,
    prop_def,
    traits_def,
    var_operand_def,
    var_result_def,
)
from xdsl.traits import Pure

from gqc.dialects.constraints import require
from gqc.dialects.gq_fused import YieldOp
from gqc.targets import ANY


@irdl_op_definition
class LaunchOp(IRDLOperation):
    """Run the tile kernel of the first bucket that holds the rows of the first input.

    Rows are the product of all its dimensions but the last; a bucket of `targets.ANY` (-1) rows is
    unbounded. A kernel's arguments are inputs, weights, bias and results, in this order. Without
    weights, it quantizes its inputs; with them, what its epilogue reads are the last inputs.
    Attributes, if any, say what the launch was made of: `layer` and `weight`, or all of those that
    were merged, the weight's type `packed` and its `layout`.

    `fused` says in torch's operations what the kernels compute besides. With weights it is the
    epilogue: a function of the product, bias included, and of the last inputs. Without weights it
    computes what is quantized from the first inputs.

    C1 there is a kernel for each bucket.
    C2 buckets rise, and only the last is unbounded.
    C3 there is an input and a result.
    C4 what is fused takes the last inputs, or the first ones, and ends in `gq.yield`.
    """

    name = "gq.launch"

    inputs = var_operand_def(TensorType)
    parts = var_operand_def(TensorType)
    bias = opt_operand_def(TensorType)
    kernels = prop_def(ArrayAttr[SymbolRefAttr])
    rows = prop_def(DenseArrayBase.constr(i64))
    irdl_options = (AttrSizedOperandSegments(as_property=True),)
    outputs = var_result_def(TensorType)
    fused = opt_region_def("single_block")
    traits = traits_def(Pure())
    assembly_format = (
        "$kernels `rows` $rows `on` `(` $inputs `:` type($inputs) `)`"
        " (`weights` `(` $parts^ `:` type($parts) `)`)? (`bias` `(` $bias^ `:` type($bias) `)`)?"
        " attr-dict `->` type($outputs) (`fused` $fused^)?"
    )

    def __init__(
        self,
        kernels: Sequence[str],
        rows: Sequence[int],
        inputs: Sequence[SSAValue],
        parts: Sequence[SSAValue],
        bias: SSAValue | None,
        outputs: Sequence[Attribute],
        fused: Region | None = None,
    ):
        super().__init__(
            operands=[inputs, parts, bias],
            properties={
                "kernels": ArrayAttr([SymbolRefAttr(k) for k in kernels]),
                "rows": DenseArrayBase.from_list(i64, list(rows)),
            },
            result_types=[outputs],
            regions=[[] if fused is None else [fused]],
        )

    @property
    def buckets(self) -> list[tuple[int, str]]:
        """(most rows, kernel name) in rising order; the last is `ANY`."""
        names = [k.root_reference.data for k in self.kernels]
        return list(zip((int(r) for r in self.rows.get_values()), names, strict=True))

    def verify_(self) -> None:
        rows = [int(r) for r in self.rows.get_values()]
        require(len(rows) == len(self.kernels) > 0, self, "C1", "one kernel for each bucket")
        bounded = rows[:-1]
        require(
            rows[-1] == ANY and bounded == sorted(set(bounded)) and min([1, *bounded]) > 0,
            self,
            "C2",
            f"buckets {rows} must rise and end unbounded (-1)",
        )
        both = len(self.inputs) > 0 and len(self.outputs) > 0
        require(both, self, "C3", "needs an input and a result")
        if self.fused is not None:
            self.verify_fused(self.fused.block)

    def verify_fused(self, block: Block) -> None:
        taken = [argument.type for argument in block.args]
        given = [value.type for value in self.inputs]
        if len(self.parts):  # the product, then the last inputs
            taken = taken[1:]
            given = given[len(given) - len(taken) :]
        fits = len(block.args) > 0 and taken == given[: len(taken)]
        fits = fits and len(taken) <= len(given) and isinstance(block.last_op, YieldOp)
        require(fits, self, "C4", "what is fused must take the launch's inputs and yield")
