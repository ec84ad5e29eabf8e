"""Verify a contract: a module is refused unless it keeps that of a stage."""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass

from gqc.errors import GqcError
from gqc.passes.contracts import CONTRACTS, verify_stage


@dataclass(frozen=True)
class VerifyContract(ModulePass):
    """Leaves a module as it is. Raises VerifyException that names the operation and what is wrong
    with it, and GqcError on an unknown stage."""

    name = "verify-contract"

    stage: str

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        if self.stage not in CONTRACTS:
            raise GqcError(f"no stage is called {self.stage!r}: there are {', '.join(CONTRACTS)}")
        verify_stage(op, self.stage)
