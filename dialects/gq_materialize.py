"""Operations of the `gq` dialect that say what is computed of weights once, before a model runs."""

from __future__ import annotations

from collections.abc import Sequence

from xdsl.dialects.builtin import ArrayAttr, FlatSymbolRefAttrConstr, SymbolRefAttr, TensorType
from xdsl.ir import Block, Region, SSAValue
from xdsl.irdl import (
    IRDLOperation,
    irdl_op_definition,
    prop_def,
    region_def,
    traits_def,
    var_operand_def,
)
from xdsl.traits import IsolatedFromAbove, NoTerminator

from gqc.dialects.constraints import require


@irdl_op_definition
class MaterializeOp(IRDLOperation):
    """Work on weights alone, in a module beside its functions: done once, into the side store.

    Its body reads weights as the store has them before, and stores what functions read after.
    """

    name = "gq.materialize"

    body = region_def("single_block")
    traits = traits_def(IsolatedFromAbove(), NoTerminator())
    assembly_format = "$body attr-dict"

    def __init__(self, block: Block):
        super().__init__(regions=[Region(block)])


@irdl_op_definition
class StoreOp(IRDLOperation):
    """Put tensors into the side store, by name, in the place of what had the names.

    C1 there is a name for each tensor.
    """

    name = "gq.store"

    values = var_operand_def(TensorType)
    names = prop_def(ArrayAttr.constr(FlatSymbolRefAttrConstr))
    assembly_format = "$values `to` $names attr-dict `:` type($values)"

    def __init__(self, values: Sequence[SSAValue], names: Sequence[str]):
        super().__init__(
            operands=[values], properties={"names": ArrayAttr(map(SymbolRefAttr, names))}
        )

    @property
    def keys(self) -> list[str]:
        """The fully qualified names."""
        return [name.root_reference.data for name in self.names]

    def verify_(self) -> None:
        both = f"{len(self.values)} tensors, {len(self.names)} names"
        require(len(self.values) == len(self.names), self, "C1", both)
