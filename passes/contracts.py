"""The four contracts between stages, each with its verifier.

imported: functions of `fx.call` (or a linear that was captured alone) on values and weights.
grouped: every linear is one `gq.matmul_t`; only matmuls read block-scaled values.
legal: every matmul says how it is done; none but a native one reads block-scaled codes.
kernels: launches of kernels that the module holds; no work on weights is left.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.utils.exceptions import VerifyException

from gqc.dialects import fx, gq, tile
from gqc.dialects.text import where
from gqc.passes.helpers import weight_of

TORCH = (fx.CallOp, gq.WeightOp, gq.TransposeOp)
CHANNELS = (gq.ScaleChannelsOp, gq.GatherChannelsOp, gq.RotateChannelsOp)
CONCAT = (gq.ConcatOp,)
CASTS = (gq.QcastOp, gq.DcastOp, gq.PackOp, gq.UnpackOp)
FUSED = (gq.FusedOp, gq.YieldOp)
LAUNCHES = (gq.LaunchOp, gq.YieldOp)

ALLOWED: dict[str, tuple[type[Operation], ...]] = {
    "imported": (*TORCH, gq.MatmulTOp),
    "grouped": (*TORCH, gq.MatmulTOp, gq.TensorScaleOp, gq.QcastOp, *CHANNELS, *CONCAT),
    "legal": (*TORCH, gq.MatmulTOp, gq.TensorScaleOp, *CASTS, *FUSED, *CHANNELS, *CONCAT),
    "kernels": (*TORCH, gq.MatmulTOp, gq.TensorScaleOp, *LAUNCHES, gq.RotateChannelsOp),
}
"""Operations that a function may hold at each stage, besides its own frame."""


def check_grouped(op: Operation) -> str | None:
    """What is wrong with an operation of the stage, if anything is."""
    if isinstance(op, gq.QcastOp | gq.WeightOp) and gq.block_scaled(op.result) is not None:
        readers = [use.operation for use in op.result.uses]
        weighty = gq.MatmulTOp | gq.GatherChannelsOp | gq.ConcatOp
        if not all(isinstance(r, weighty) for r in readers):
            return "only gq.matmul_t may read a block-scaled value"
    elif isinstance(op, gq.ScaleChannelsOp | gq.GatherChannelsOp) and weight_of(op.source) is None:
        plain = isinstance(op, gq.GatherChannelsOp) or op.offset is None
        if op.axis != len(gq.tensor_shape(op.source)) - 1 or not plain:
            return "channels of activations lie along the last dimension, unshifted"
    return None


def check_legal(op: Operation) -> str | None:
    """What is wrong with an operation of the stage, if anything is."""
    if isinstance(op, gq.MatmulTOp):
        if op.decision is None:
            return "no decision says how it is done"
        if reads_codes(op) and op.decision.kind.data != "native":
            return "reads block-scaled codes without a gq.dcast"
    return None


def reads_codes(matmul: gq.MatmulTOp) -> bool:
    """Whether an operand is block-scaled."""
    return any(gq.block_scaled(v) is not None for v in (matmul.x, matmul.weight))


Check = Callable[[Operation], str | None]
"""What is wrong with an operation, if anything is."""

CHECKS: dict[str, Check] = {
    "imported": lambda op: None,
    "grouped": check_grouped,
    "legal": check_legal,
    "kernels": lambda op: None,
}


def verify_stage(module: ModuleOp, stage: str) -> None:
    """Raise VerifyException unless the module keeps the contract of a stage."""
    module.verify()
    contract = Contract(f"contract {stage!r}", ALLOWED[stage], CHECKS[stage])
    verify(module, contract, lambda op: "")


@dataclass(frozen=True)
class Contract:
    """What a module must be: the operations that functions may hold, and a check of each; whether
    it holds all kernels that it launches."""

    name: str
    allowed: tuple[type[Operation], ...]
    check: Check
    whole: bool = True


def verify(module: ModuleOp, contract: Contract, place: Callable[[Operation], str]) -> None:
    """Raise VerifyException unless the functions of a module keep a contract; `place` says where an
    operation is."""
    kernels = {op.sym_name.data for op in module.ops if isinstance(op, tile.KernelOp)}
    for function in module.ops:
        if not isinstance(function, func.FuncOp):
            continue
        for op in function.walk():
            if isinstance(op, func.FuncOp | func.ReturnOp):
                continue
            if (fault := fault_of(op, contract, kernels)) is not None:
                raise VerifyException(f"{contract.name}: {op.name}: {fault}{place(op)}")


def fault_of(op: Operation, contract: Contract, kernels: set[str]) -> str | None:
    """What is wrong with an operation, if anything is."""
    if not isinstance(op, contract.allowed):
        return "is not an operation of this stage"
    if (
        contract.whole
        and isinstance(op, gq.LaunchOp)
        and not kernels.issuperset(k for _, k in op.buckets)
    ):
        return "launches a kernel that the module does not hold"
    return contract.check(op)


# What passes take


GROUPED = Contract("a module up to the stage 'grouped'", ALLOWED["grouped"], check_grouped)
LEGAL = Contract("a module of the stage 'legal'", ALLOWED["legal"], check_legal)
LOWERED = (*ALLOWED["legal"], gq.LaunchOp)
LOWERING = Contract("a module between the stages 'legal' and 'kernels'", LOWERED, check_legal)
FOLDABLE = Contract("functions up to the stage 'kernels'", LOWERED, lambda op: None, whole=False)

TAKES: dict[str, Contract] = {
    "recognize-linears": GROUPED,
    "adopt-weights": GROUPED,
    "quantize-weights": GROUPED,
    "fold-channels": GROUPED,
    "quantize-activations": GROUPED,
    "merge-linears": GROUPED,
    "legalize": GROUPED,
    "assign-layouts": LEGAL,
    "split-m-buckets": LEGAL,
    "lower-channels": LEGAL,
    "fuse-producers": LEGAL,
    "lower-quantizers": LEGAL,
    "lower-to-tile": LOWERING,
    "fuse-epilogues": LOWERING,
    "fold-weights": FOLDABLE,
}
"""What each pass takes; it may rely on that, and on what `verify_ir` verifies."""


def verify_taken(module: ModuleOp, pass_name: str) -> None:
    """Raise VerifyException if a module is not what a pass takes."""
    contract = replace(TAKES[pass_name], name=f"{pass_name} takes {TAKES[pass_name].name}")
    verify(module, contract, lambda op: f"; {where(op)}")
