"""The order in which kernels sum up K: whether a row's bits depend on the batch that it is in.

A kernel multiplies each row of x by itself, so a row's bits depend on the batch only through the
kernel that is launched, by the number of rows. Kernels of one order give equal bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

from gqc.dialects import gq
from gqc.passes.helpers import weight_type
from gqc.targets import ANY, Target

DETERMINISTIC = "deterministic"
"""Attribute of a matmul whose kernels have to sum up K in one order: `batch`."""
BATCH = "batch"
"""The one value of the option `deterministic`. As an attribute of a matmul: why a row's bits depend
on the batch, where they do."""


@dataclass(frozen=True)
class Order:
    """All that a kernel's sums over K depend on, besides the matmul."""

    step: int
    """K of one dot."""
    scale: str
    """Where the scale is applied: `before` the dot, `after` it, or by the `unit`."""
    parts: int
    """Programs among which K is divided."""
    instruction: str
    """What multiplies: the order inside an instruction is the hardware's."""


WORDS = {
    "step": "how much of K a step takes",
    "scale": "whether scales are applied before or after a sum",
    "parts": "in how many parts K is summed up",
    "instruction": "the instruction that multiplies",
}


def order_of(schedule: gq.ScheduleAttr, target: Target, matmul: gq.MatmulTOp) -> Order:
    """The order in which a schedule's kernel sums up K."""
    step, scale, parts = schedule.sizes[2], schedule.scale.data, schedule.parts.data
    assert matmul.decision is not None
    if matmul.decision.kind.data == "native":
        return Order(step, scale, parts, "native")  # a CPU's dots of bytes are exact
    element = str(gq.element_type(matmul.x))
    if target.backend == "cpu":
        return Order(step, scale, parts, cpu_instruction(schedule, target, matmul, element))
    unit = target.units.get(element, element)
    if target.nonkdim:
        side = target.nonkdim if target.one_order else side_of(schedule)
        unit = f"{unit} {side}x{side}"
    return Order(step, scale, parts, unit)


def cpu_instruction(
    schedule: gq.ScheduleAttr, target: Target, matmul: gq.MatmulTOp, element: str
) -> str:
    """What a CPU multiplies floats by: pairs of bf16 in lanes or in tiles, or f32."""
    rounded = schedule.scale.data == "before" and not (
        schedule.panel.data and weight_type(matmul).is_exact_in(element)
    )
    if rounded or not target.dots(element):
        return "fma"
    in_tiles = schedule.panel.data and schedule.sizes[0] == target.matrix_rows
    return "tiles of pairs" if in_tiles else "pairs"


def side_of(schedule: gq.ScheduleAttr) -> int:
    """Rows and columns of the matrix instruction that Triton chooses on AMD's GPUs."""
    return 32 if min(schedule.sizes[:2]) >= 32 else 16


@dataclass(frozen=True)
class Buckets:
    """Neighbouring buckets of one order: numbers of rows, the last of them `ANY` if unbounded."""

    first: int
    last: int
    order: Order

    def __str__(self) -> str:
        if self.last == ANY:
            return f"{self.first}–"
        return f"{self.first}" if self.first == self.last else f"{self.first}–{self.last}"


def buckets_of(matmul: gq.MatmulTOp, target: Target) -> list[Buckets]:
    """The buckets of a scheduled matmul, neighbours of one order together."""
    found: list[Buckets] = []
    first = 1
    for schedule in matmul.schedules or ():
        assert isinstance(schedule, gq.ScheduleAttr)
        order, last = order_of(schedule, target, matmul), schedule.rows.data
        if found and found[-1].order == order:
            first = found.pop().first
        found.append(Buckets(first, last, order))
        first = last + 1
    return found


def has_scale_of_batch(matmul: gq.MatmulTOp) -> bool:
    """Whether x has a tensor scale that is taken from all rows as the model runs."""
    op = matmul.x.owner
    while isinstance(op, gq.DcastOp | gq.UnpackOp | gq.PackOp):
        op = op.operands[0].owner
    scale = op.tensor_scale if isinstance(op, gq.QcastOp) else None
    return scale is not None and isinstance(scale.owner, gq.TensorScaleOp)


def dependence(matmul: gq.MatmulTOp, target: Target) -> str:
    """Why a row's bits depend on the batch that it is in; empty where they do not."""
    if has_scale_of_batch(matmul):
        return "a row's bits depend on its batch: the tensor scale of x is taken from all rows"
    buckets = buckets_of(matmul, target)
    if len({each.order for each in buckets}) < 2:
        return ""
    ranges = " and ".join(map(str, buckets))
    return (
        f"a row's bits depend on its batch: kernels for {ranges} rows differ in "
        f"{' and '.join(differences(each.order for each in buckets))}"
    )


def differences(orders: Iterable[Order]) -> Sequence[str]:
    """In what some orders differ."""
    several = list(orders)
    names = [field.name for field in fields(Order)]
    return [WORDS[name] for name in names if len({getattr(o, name) for o in several}) > 1]
