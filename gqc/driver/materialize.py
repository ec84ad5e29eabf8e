"""Materialize weights: compute what `gq.materialize` says, into the side store."""

from __future__ import annotations

import warnings
from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import nn
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation, SSAValue

from gqc.dialects import gq
from gqc.dialects.interpret import interpreter
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.passes.helpers import layer_name, weight_of, written_buffers
from gqc.quantizers import refuse_specials, underflow

Store = MutableMapping[str, torch.Tensor]
Quantized = gq.QcastOp | gq.WeightOp
"""What gives a quantized weight: the cast of a dense one, or the store."""
Observer = Callable[[torch.Tensor | None, BlockScaled, Quantized], None]
"""Called with each weight, None if it is stored quantized, its quantized form, and its maker."""
Seen = list[tuple[torch.Tensor | None, BlockScaled, Quantized]]


def materialize(
    module: ModuleOp,
    store: Store,
    observe: Observer = lambda *seen: None,
    keep: Callable[[torch.Tensor], torch.Tensor] = lambda part: part,
) -> None:
    """Compute what functions read into the store, and remove from it what nothing reads any more.

    The module's `gq.materialize` is done then, and erased. `observe` sees each weight beside its
    quantized form; `keep` puts a part of a packed weight where it is to stay. Raises GqcError that
    names every weight that cannot be quantized, and warns of those that are near the least scale.
    """
    problems: list[str] = []
    small: list[str] = []
    for work in [op for op in module.ops if isinstance(op, gq.MaterializeOp)]:
        for op in work.body.block.ops:
            if isinstance(op, gq.StoreOp):
                try:
                    store.update(
                        zip(op.keys, computed(op, store, observe, keep, small), strict=True)
                    )
                except GqcError as error:
                    problems.append(str(error))
        work.detach()
        work.erase()
    if len(problems) > 1:
        problems.insert(0, f"{len(problems)} weights cannot be quantized:")
    if problems:
        raise GqcError("\n  ".join(problems))
    if small:
        warnings.warn("\n  ".join(small), stacklevel=2)
    remove_unread(module, store)


def computed(
    op: gq.StoreOp,
    store: Store,
    observe: Observer,
    keep: Callable[[torch.Tensor], torch.Tensor],
    small: list[str],
) -> list[torch.Tensor]:
    """What is to be stored. What is to be said of weights near the least scale is put into
    `small`."""
    maker, seen = op.values[0].owner, Seen()
    if not isinstance(maker, gq.PackOp):  # channels changed, or biases put together
        weight = weight_of(op.values[0])
        assert weight is not None
        return [like(store[weight.key], evaluate(op.values[0], store, seen))]
    quantized = evaluate(maker.weight, store, seen)
    for source, found, cast in seen:
        if isinstance(cast, gq.QcastOp):
            assert source is not None
            check_range(source, found, cast, maker)
            if said := underflow(source, found):
                small.append(f"{layer_name(cast)}: {said}")
        observe(source, found, cast)
    return [keep(part) for part in run(maker, [quantized])]


def run(op: Operation, operands: Sequence[Any]) -> tuple[Any, ...]:
    """The results of an operation on weights. Raises GqcError, on inf and NaN too."""
    try:
        with torch.no_grad():
            if isinstance(op, gq.QcastOp):
                refuse_specials(operands[0])
            return interpreter(ModuleOp([]), {}).run_op(op, tuple(operands))
    except ValueError as error:
        shape = list(gq.tensor_shape(op.operands[0]))
        raise GqcError(f"{layer_name(op)}: weight {shape}: {error}") from error


def evaluate(value: SSAValue, store: Store, seen: Seen) -> Any:
    """A value that depends on the store alone; quantized weights on the way are put into `seen`."""
    op = value.owner
    assert isinstance(op, Operation)
    if isinstance(op, gq.WeightOp):
        stored: Any = store[op.key]
        if gq.block_scaled(value) is not None:
            seen.append((None, stored, op))
        return stored
    operands = [evaluate(operand, store, seen) for operand in op.operands]
    (result,) = run(op, operands)
    if isinstance(op, gq.QcastOp):
        seen.append((operands[0], result, op))
    return result


def like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """A tensor as a parameter, if it takes the place of one."""
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def check_range(
    source: torch.Tensor, quantized: BlockScaled, cast: gq.QcastOp, pack: gq.PackOp
) -> None:
    """Kernels that decode codes may multiply in the weight's own type: no value may be beyond it.

    A scale that is rounded up may take the greatest weights of float16 there. The layout `bytes` is
    of matrix units, which multiply codes and scales of any range.
    """
    if source.dtype != torch.float16 or pack.layout.kind.data == gq.LayoutAttr.BYTES:
        return
    greatest, limit = float(quantized.dequantize(torch.float32).abs().max()), 65504.0
    if greatest > limit:
        raise GqcError(
            f"{layer_name(cast)}: weight {list(source.shape)}: its greatest, "
            f"{float(source.abs().max()):g}, becomes {greatest:g} in {quantized.type}, beyond "
            f"{limit:g}, the greatest float16: convert the model, for example model.bfloat16(), or "
            "choose a scheme whose scales are rounded down"
        )


def remove_unread(module: ModuleOp, store: Store) -> None:
    """Remove what no function reads or writes."""
    read = {op.key for op in module.walk() if isinstance(op, gq.WeightOp)}
    for name in [*store.keys() - read - written_buffers(module)]:
        del store[name]
