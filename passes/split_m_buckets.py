"""Split by M: give each quantized matmul a tile schedule for each bucket of row counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from xdsl.context import Context
from xdsl.dialects.builtin import ArrayAttr, ModuleOp, StringAttr
from xdsl.passes import ModulePass

from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.formats.packing import whole_words
from gqc.passes.helpers import layer_name, matmuls, merged, native_row, weight_type
from gqc.passes.order_of_k import BATCH, DETERMINISTIC, dependence, has_scale_of_batch
from gqc.targets import ANY, Target, Tiling, resolve


def step_of(tiling: Tiling, block: int, k: int, bits: int) -> int:
    """BK: the tiling's, or one block of the format, and whole words of every plane in any case."""
    step = tiling.bk or block
    if block == k and not tiling.bk:  # one scale a row: the widest step without a tail
        step = next((n for n in (128, 64, 32) if k % n == 0), 32)
    return max(step, whole_words(bits))


def columns_of(tiling: Tiling, type_: gq.BlockScaledType, matmul: gq.MatmulTOp) -> int:
    """BN: the tiling's; pairs of columns where two weights were merged, and whole words of zero
    points where these are packed."""
    columns = max(tiling.bn, tiling.paired) if len(merged(matmul.weight)) == 2 else tiling.bn
    return max(columns, whole_words(type_.format.bits)) if type_.mode.integer else columns


PART_CODES = 1 << 17
"""Codes of a part of K, at least: they take some microseconds, as starting a thread does."""


def parts_of(tiling: Tiling, target: Target, shape: Sequence[int], bn: int, step: int) -> int:
    """How many programs make one tile of few rows, each of a part of K: by shape, so that results
    are the same on any number of threads. Parts are equal, of whole steps."""
    n, k = shape
    if tiling.rows == ANY or k % step:
        return 1
    most = min(target.programs // -(-n // bn), bn * k // PART_CODES)
    return max((parts for parts in range(1, most + 1) if k // step % parts == 0), default=1)


def rows_of(tiling: Tiling, target: Target, matmul: gq.MatmulTOp, step: int, scale: str) -> int:
    """BM: the tiling's, or what a CPU's matrix unit takes. It multiplies bf16: x, in memory and
    without a tail of K, by panels of codes that bf16 holds, scaled after the dot or exactly."""
    if not tiling.panel or not target.matrix_rows:
        return tiling.bm
    x, type_ = str(gq.element_type(matmul.x)), weight_type(matmul)
    in_bf16 = x == "bf16" and type_.codes_are_exact_in(x)
    if scale == "before" and rounds(type_, matmul, target):
        in_bf16 = False  # the panel is f32 (`PanelMatmulKernel.decoded_type`)
    has_tail = gq.tensor_shape(matmul.weight)[1] % step
    return target.matrix_rows if in_bf16 and not has_tail else tiling.bm


def schedule(tiling: Tiling, target: Target, matmul: gq.MatmulTOp) -> gq.ScheduleAttr:
    """The schedule of one bucket. A step of several blocks has the scale before the dot."""
    type_, shape = weight_type(matmul), gq.tensor_shape(matmul.weight)
    block = type_.block_of(shape)[1]
    step = step_of(tiling, block, shape[1], type_.format.bits)
    scale = target.scale
    if block < step and block != shape[1]:
        scale = "before"
    elif tiling.panel and not target.one_order:
        scale = "after" if rounds(type_, matmul, target) else "before"
    rows = rows_of(tiling, target, matmul, step, scale)
    sizes = (rows, columns_of(tiling, type_, matmul), step)
    parts = parts_of(tiling, target, shape, *sizes[1:])
    counts = tiling.warps, tiling.stages, tiling.panel, parts
    return gq.ScheduleAttr(tiling.rows, sizes, scale, *counts)


def rounds(type_: gq.BlockScaledType, matmul: gq.MatmulTOp, target: Target) -> bool:
    """Whether a scaled weight is rounded in the float type that a target's dots take."""
    element = str(gq.element_type(matmul.x))
    return target.dots(element) and not type_.is_exact_in(element)


def native_schedule(tiling: Tiling, target: Target, matmul: gq.MatmulTOp) -> gq.ScheduleAttr:
    """The schedule of one bucket where the matrix unit scales, or a step is one group."""
    type_, shape = gq.block_scaled(matmul.weight), gq.tensor_shape(matmul.weight)
    assert type_ is not None
    group = type_.block_of(shape)[1]
    tile = (tiling.bm, columns_of(tiling, type_, matmul), tiling.bk or group)
    parts = parts_of(tiling, target, shape, *tile[1:])
    counts = tiling.warps, tiling.stages, tiling.panel, parts
    return gq.ScheduleAttr(tiling.rows, tile, "unit", *counts)


@dataclass(frozen=True)
class SplitMBuckets(ModulePass):
    """legal → legal, each matmul on a packed weight with its schedules.

    `deterministic = "batch"` has kernels of all buckets sum up K in one order, so that a row's bits
    are the same in any batch; a matmul where they are not says why (`gqc.passes.order_of_k`).
    Raises GqcError on another value, and, with the layers' names, where the order is not all that
    counts.
    """

    name = "split-m-buckets"

    target: str
    deterministic: str = ""

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        target = resolve(self.target)
        if self.deterministic:
            refuse_other_values(self.deterministic)
            refuse_scales_of_batches(op)
            target = target.in_one_order()
        for matmul in matmuls(op):
            if schedules := schedules_for(matmul, target):
                matmul.schedules = ArrayAttr(schedules)
                if self.deterministic:
                    matmul.attributes[DETERMINISTIC] = StringAttr(self.deterministic)
                if why := dependence(matmul, target):
                    matmul.attributes[BATCH] = StringAttr(why)


def schedules_for(matmul: gq.MatmulTOp, target: Target) -> list[gq.ScheduleAttr]:
    """A schedule for each bucket of rows; none for a matmul that is kept."""
    kind = matmul.decision.kind.data if matmul.decision is not None else None
    if kind == "emulated":
        bits, element = weight_type(matmul).format.bits, str(gq.element_type(matmul.x))
        return [schedule(t, target, matmul) for t in target.tilings_of(bits, element)]
    if kind == "native":
        tilings = native_row(matmul, target).tilings
        return [native_schedule(t, target, matmul) for t in tilings]
    return []


def refuse_other_values(deterministic: str) -> None:
    """Raise GqcError unless a value of the option is known."""
    if deterministic != BATCH:
        raise GqcError(f"deterministic is {deterministic!r}: give {BATCH!r}, or leave it out")


def refuse_scales_of_batches(module: ModuleOp) -> None:
    """Raise one GqcError for all layers whose input is scaled by the greatest of all rows."""
    layers = [f"  {layer_name(m)}" for m in matmuls(module) if has_scale_of_batch(m)]
    if layers:
        names = "\n".join(dict.fromkeys(layers))
        raise GqcError(
            "deterministic='batch': the tensor scale of these layers' inputs is taken from all "
            f"rows of a batch, so a row's codes depend on the others:\n{names}\nchoose a scheme "
            "without such a scale (mxfp4, w4a16_nvfp4), or a calibrated one (nvfp4_static)"
        )
