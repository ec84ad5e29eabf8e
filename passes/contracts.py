"""The four contracts between stages, each with its verifier.

imported: functions of `fx.call` (or a linear that was captured alone) on values and weights.
grouped: every linear is one `gq.matmul_t`; only matmuls read block-scaled values.
legal: every matmul says how it is done; none but a native one reads block-scaled codes.
kernels: launches of kernels that the module holds; no work on weights is left.
"""

from __future__ import annotations

from collections.abc import Callable

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.utils.exceptions import VerifyException

from gqc.dialects import fx, gq, tile
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


def fail(stage: str, op: Operation, message: str) -> None:
    raise VerifyException(f"contract {stage!r}: {op.name}: {message}")


def check_grouped(op: Operation) -> None:
    if isinstance(op, gq.QcastOp | gq.WeightOp) and gq.block_scaled(op.result) is not None:
        readers = [use.operation for use in op.result.uses]
        weighty = gq.MatmulTOp | gq.GatherChannelsOp | gq.ConcatOp
        if not all(isinstance(r, weighty) for r in readers):
            fail("grouped", op, "only gq.matmul_t may read a block-scaled value")
    elif isinstance(op, gq.ScaleChannelsOp | gq.GatherChannelsOp) and weight_of(op.source) is None:
        plain = isinstance(op, gq.GatherChannelsOp) or op.offset is None
        if op.axis != len(gq.tensor_shape(op.source)) - 1 or not plain:
            fail("grouped", op, "channels of activations lie along the last dimension, unshifted")


def check_legal(op: Operation) -> None:
    if isinstance(op, gq.MatmulTOp):
        if op.decision is None:
            fail("legal", op, "no decision says how it is done")
        elif reads_codes(op) and op.decision.kind.data != "native":
            fail("legal", op, "reads block-scaled codes without a gq.dcast")


def reads_codes(matmul: gq.MatmulTOp) -> bool:
    """Whether an operand is block-scaled."""
    return any(gq.block_scaled(v) is not None for v in (matmul.x, matmul.weight))


CHECKS: dict[str, Callable[[Operation], None]] = {
    "imported": lambda op: None,
    "grouped": check_grouped,
    "legal": check_legal,
    "kernels": lambda op: None,
}


def verify_stage(module: ModuleOp, stage: str) -> None:
    """Raise VerifyException unless the module keeps the contract of a stage."""
    module.verify()
    kernels = {op.sym_name.data for op in module.ops if isinstance(op, tile.KernelOp)}
    for function in module.ops:
        if not isinstance(function, func.FuncOp):
            continue
        for op in function.walk():
            if isinstance(op, func.FuncOp | func.ReturnOp):
                continue
            if not isinstance(op, ALLOWED[stage]):
                fail(stage, op, "is not an operation of this stage")
            if isinstance(op, gq.LaunchOp) and not kernels.issuperset(k for _, k in op.buckets):
                fail(stage, op, "launches a kernel that the module does not hold")
            CHECKS[stage](op)
