"""The contracts between stages: a table for each, every row a sentence.

The first row that concerns an operation decides: it allows the operation, or refuses it with a
message. What no row concerns is no operation of the stage. Rows `at_end` hold where a stage ends;
its passes lead there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from xdsl.dialects import func
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.utils.exceptions import VerifyException

from gqc.dialects import fx, gq, tile
from gqc.dialects.text import where
from gqc.passes.helpers import weight_of
from gqc.passes.recognize_linears import (
    LINEARS,
    argument,
    peculiarity,
    varies,
    weight_on_left,
    weight_read,
)

Ops = type[Operation] | tuple[type[Operation], ...]


@dataclass(frozen=True)
class Row:
    """One sentence of a contract: what it `says` of the operations `ops` for which `when` holds.

    error: why they are refused; None allows them.
    """

    says: str
    ops: Ops
    when: Callable[[Operation], bool] = lambda op: True
    error: str | None = None
    at_end: bool = False

    def concerns(self, op: Operation, at_end: bool) -> bool:
        """Whether the row decides on an operation, where the stage ends or before."""
        return isinstance(op, self.ops) and (at_end or not self.at_end) and self.when(op)


Contract = tuple[Row, ...]


# ---- what rows ask


def readers(op: Operation) -> list[Operation]:
    """Operations that read the first result."""
    return [use.operation for use in op.results[0].uses]


def gives_codes(op: Operation) -> bool:
    """Whether the first result is block-scaled."""
    return gq.block_scaled(op.results[0]) is not None


def codes_go_to(*ops: type[Operation]) -> Callable[[Operation], bool]:
    """Whether the first result is block-scaled, and an operation of no such kind reads it."""
    return lambda op: gives_codes(op) and not all(isinstance(r, ops) for r in readers(op))


def reads_weight(call: Operation) -> bool:
    """Whether a call is a product with a stored weight, on either side."""
    return isinstance(call, fx.CallOp) and (weight_read(call) or weight_on_left(call))


def is_peculiar(call: Operation) -> bool:
    """Whether it is more than a linear layer, or another product."""
    return isinstance(call, fx.CallOp) and weight_read(call) and peculiarity(call) is not None


def is_constant(call: Operation) -> bool:
    """Whether its other operand does not vary."""
    if not isinstance(call, fx.CallOp) or not reads_weight(call):
        return False
    x = argument(call, LINEARS[call.callee.data].x) if weight_read(call) else call.operands[1]
    return not varies(x)


def decision(op: Operation) -> str:
    """Kind of the decision on a matmul; empty without."""
    assert isinstance(op, gq.MatmulTOp)
    return "" if op.decision is None else op.decision.kind.data


def operand_codes(op: Operation) -> list[bool]:
    """Of x and the weight of a matmul, whether they are block-scaled."""
    return [gq.block_scaled(value) is not None for value in op.operands[:2]]


def decoded_weight(op: Operation) -> bool:
    """Whether a matmul reads a weight that `gq.dcast` decodes."""
    return isinstance(op.operands[1].owner, gq.DcastOp)


def of_activation(op: Operation) -> bool:
    return weight_of(op.operands[0]) is None


def along_others(op: Operation) -> bool:
    """Whether an operation changes channels of an activation that are not its last dimension, or
    shifts them."""
    assert isinstance(op, gq.ScaleChannelsOp | gq.GatherChannelsOp)
    shifts = isinstance(op, gq.ScaleChannelsOp) and op.offset is not None
    return of_activation(op) and (op.axis != len(gq.tensor_shape(op.source)) - 1 or shifts)


def computed_parts(op: Operation) -> bool:
    """Whether a launch reads parts of a weight that are not stored."""
    assert isinstance(op, gq.LaunchOp)
    return not all(isinstance(part.owner, gq.WeightOp) for part in op.parts)


def lacks_kernel(op: Operation) -> bool:
    """Whether a launch names a kernel that its module does not hold."""
    assert isinstance(op, gq.LaunchOp)
    module = op
    while (parent := module.parent_op()) is not None:
        module = parent
    assert isinstance(module, ModuleOp)
    held = {kernel.sym_name.data for kernel in module.ops if isinstance(kernel, tile.KernelOp)}
    return not held.issuperset(name for _, name in op.buckets)


# ---- the tables


CHANNELS = (gq.ScaleChannelsOp, gq.GatherChannelsOp, gq.RotateChannelsOp)
ON_WEIGHTS = (gq.QcastOp, gq.DcastOp, gq.PackOp, gq.UnpackOp, gq.ConcatOp, *CHANNELS[:2])

CALLS: Contract = (
    Row(
        "A product that is more than x · Wᵀ + b stays torch's: alpha, beta, a matrix for a bias.",
        fx.CallOp,
        is_peculiar,
    ),
    Row(
        "A product of constants stays torch's: it is no layer (LoRA's B · A).",
        fx.CallOp,
        is_constant,
    ),
    Row(
        "Any other product with a stored weight is a gq.matmul_t.",
        fx.CallOp,
        reads_weight,
        "a product with a stored weight is a gq.matmul_t after recognize-linears",
    ),
    Row("What else torch computes is opaque, a product of two activations too.", fx.CallOp),
)

IMPORTED: Contract = (
    Row("Calls of torch are as they were captured.", fx.CallOp),
    Row(
        "Weights are floats or integers of torch.",
        gq.WeightOp,
        gives_codes,
        "weights are quantized by later passes",
    ),
    Row("Weights are stored outside, by name.", gq.WeightOp),
    Row(
        "Nothing is decided about a linear layer that was captured by itself.",
        gq.MatmulTOp,
        lambda op: bool(decision(op)),
        "only later passes decide how it is done",
    ),
    Row("It is a product already, of a transposed weight if need be.", gq.MatmulTOp),
    Row("Weights are transposed.", gq.TransposeOp),
)

GROUPED: Contract = (
    *CALLS,
    Row(
        "Quantized tensors are read by products, and by what orders or joins channels before.",
        (gq.WeightOp, gq.QcastOp),
        codes_go_to(gq.MatmulTOp, gq.GatherChannelsOp, gq.ConcatOp),
        "only gq.matmul_t may read a block-scaled value",
    ),
    Row(
        "Channels of activations are scaled, gathered and rotated along the last dimension.",
        CHANNELS[:2],
        along_others,
        "channels of activations lie along the last dimension, unshifted",
    ),
    Row(
        "That a layer is kept is decided; legalize decides on the others.",
        gq.MatmulTOp,
        lambda op: decision(op) not in ("", "kept"),
        "only legalize decides how a quantized layer is done",
    ),
    Row(
        "A layer that is kept is not quantized.",
        gq.MatmulTOp,
        lambda op: decision(op) == "kept" and any(operand_codes(op)),
        "a layer that is kept reads block-scaled codes",
    ),
    Row(
        "A linear layer is one product of x and its weight, either quantized or not.",
        (gq.MatmulTOp, gq.WeightOp, gq.TransposeOp, gq.TensorScaleOp, gq.QcastOp),
    ),
    Row("What was merged, or is not folded into weights, is said.", (gq.ConcatOp, *CHANNELS)),
)

DECIDED: Contract = (
    Row(
        "Every linear layer has a decision and its reason.",
        gq.MatmulTOp,
        lambda op: not decision(op),
        "no decision says how it is done",
    ),
    Row(
        "A native product reads the codes of both operands.",
        gq.MatmulTOp,
        lambda op: decision(op) == "native" and not all(operand_codes(op)),
        "a native product reads block-scaled codes on both sides",
    ),
    Row(
        "No other product reads codes.",
        gq.MatmulTOp,
        lambda op: decision(op) != "native" and any(operand_codes(op)),
        "reads block-scaled codes without a gq.dcast",
    ),
    Row(
        "An emulated product reads a weight that is decoded, a kept one its dense weight.",
        gq.MatmulTOp,
        lambda op: decision(op) != "native" and (decision(op) == "emulated") != decoded_weight(op),
        "an emulated product reads a decoded weight, and a kept one a dense weight",
    ),
)

LEGAL: Contract = (
    *CALLS,
    *DECIDED,
    Row(
        "Each bucket of rows of a quantized layer has a schedule.",
        gq.MatmulTOp,
        lambda op: isinstance(op, gq.MatmulTOp) and decision(op) != "kept" and not op.schedules,
        "no schedule says by which tiles",
        at_end=True,
    ),
    Row(
        "A quantized weight is packed in a layout of the target.",
        gq.WeightOp,
        codes_go_to(gq.PackOp, gq.GatherChannelsOp, gq.ConcatOp),
        "a quantized weight is read before it is packed",
        at_end=True,
    ),
    Row(
        "Channels of activations are torch's calls again, but for rotations, which are kernels.",
        CHANNELS[:2],
        of_activation,
        "channels of activations are changed by torch's calls after lower-channels",
        at_end=True,
    ),
    Row(
        "Layers, weights and quantizers are as in grouped, through casts and layouts.",
        (gq.MatmulTOp, gq.WeightOp, gq.TransposeOp, gq.TensorScaleOp, *ON_WEIGHTS, *CHANNELS),
    ),
    Row("What computes an activation that a kernel quantizes.", (gq.FusedOp, gq.YieldOp)),
)

KERNELS: Contract = (
    *CALLS,
    *DECIDED,
    Row(
        "A quantized layer is a launch.",
        gq.MatmulTOp,
        lambda op: decision(op) != "kept",
        "a quantized product is a gq.launch after lower-to-tile",
        at_end=True,
    ),
    Row(
        "Weights are stored as kernels or torch read them.",
        gq.WeightOp,
        gives_codes,
        "a quantized weight is not packed",
        at_end=True,
    ),
    Row(
        "Work on weights is done when a model is compiled, that on activations by kernels.",
        (*ON_WEIGHTS, gq.FusedOp),
        error="is left to do when the model runs",
        at_end=True,
    ),
    Row(
        "Launches read stored parts of weights.",
        gq.LaunchOp,
        computed_parts,
        "reads parts of a weight that are not stored",
        at_end=True,
    ),
    Row(
        "The module holds every kernel that it launches.",
        gq.LaunchOp,
        lacks_kernel,
        "launches a kernel that the module does not hold",
    ),
    Row("Kernels are launched, by the number of rows.", (gq.LaunchOp, gq.YieldOp)),
    Row(
        "What no kernel does is as it was: kept layers, tensor scales, rotations.",
        (gq.MatmulTOp, gq.WeightOp, gq.TransposeOp, gq.TensorScaleOp, *ON_WEIGHTS, *CHANNELS),
    ),
    Row("What computes an activation that a kernel quantizes.", gq.FusedOp),
)

CONTRACTS: dict[str, Contract] = {
    "imported": IMPORTED,
    "grouped": GROUPED,
    "legal": LEGAL,
    "kernels": KERNELS,
}
"""The contract of each stage, in order."""

TAKES: dict[str, str] = {
    "recognize-linears": "imported",
    "adopt-weights": "grouped",
    "quantize-weights": "grouped",
    "fold-channels": "grouped",
    "quantize-activations": "grouped",
    "merge-linears": "grouped",
    "legalize": "grouped",
    "assign-layouts": "legal",
    "split-m-buckets": "legal",
    "lower-channels": "legal",
    "fuse-producers": "legal",
    "lower-quantizers": "legal",
    "lower-to-tile": "kernels",
    "fuse-epilogues": "kernels",
    "fold-weights": "kernels",
}
"""What each pass takes: a module of the stage before its own, or on the way through its own."""


# ---- verifying


def verify_stage(module: ModuleOp, stage: str) -> None:
    """Raise VerifyException unless a module keeps the contract of a stage, where that ends."""
    module.verify()
    verify(module, CONTRACTS[stage], lambda op, fault: f"contract {stage!r}: {op.name}: {fault}")


def verify_taken(module: ModuleOp, pass_name: str) -> None:
    """Raise VerifyException if a module is not what a pass takes."""
    stage = TAKES[pass_name]
    says = f"{pass_name} takes a module of the stage {stage!r}"
    verify(
        module,
        CONTRACTS[stage],
        lambda op, fault: f"{says}: {op.name}: {fault}; {where(op)}",
        at_end=False,
    )


def verify(
    module: ModuleOp,
    contract: Contract,
    message: Callable[[Operation, str], str],
    at_end: bool = True,
) -> None:
    """Raise VerifyException, with a message, on the first operation that a contract refuses."""
    for function in module.ops:
        if not isinstance(function, func.FuncOp):
            continue
        for op in function.walk():
            if isinstance(op, func.FuncOp | func.ReturnOp):
                continue
            row = next((row for row in contract if row.concerns(op, at_end)), None)
            fault = "is not an operation of this stage" if row is None else row.error
            if fault is not None:
                raise VerifyException(message(op, fault))
