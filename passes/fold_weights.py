"""Fold weights: compute what depends on the side store alone, once, at compile time."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.gq_channels import ChannelOp
from gqc.dialects.interpret import interpreter
from gqc.errors import GqcError
from gqc.formats.layouts import Part
from gqc.passes.helpers import (
    is_sole_reader,
    layer_name,
    weight_names,
    weight_of,
    written_buffers,
)

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled

Store = MutableMapping[str, "torch.Tensor"]
Quantized = gq.QcastOp | gq.WeightOp
"""What gives a quantized weight: the cast of a dense one, or the store."""
Observer = Callable[["torch.Tensor | None", "BlockScaled", Quantized], None]
"""Called with each weight, None if it is stored quantized, its quantized form, and its maker."""
Change = ChannelOp | gq.ConcatOp
"""What makes other weights of weights, dense ones among them."""
Taken = dict[str, tuple[str, ...] | None]
"""What each packed weight was made by, by the name of its first part; None where a name is taken
by something else."""


def part_names(fqn: str, parts: Sequence[Part]) -> list[str]:
    """Names in the side store of the parts of a packed weight, in order."""
    kinds = {"codes": "packed"}
    words = [[fqn, kinds.get(p.kind, p.kind), p.suffix] for p in parts]
    return ["_".join(filter(None, each)) for each in words]


@dataclass(frozen=True)
class FoldWeights(ModulePass):
    """kernels → kernels, every packed weight a `gq.weight` of its parts.

    Only names change: for work on IR alone. `FoldWeightsInto` computes the parts.
    """

    name = "fold-weights"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        fold(op, None)


@dataclass(frozen=True)
class FoldWeightsInto(FoldWeights):
    """`FoldWeights` over a store: parts are computed into it, dense weights no one reads go.

    `observe` sees each weight beside its quantized form; `keep` puts a part where it is to stay.
    Raises GqcError that names every weight that cannot be quantized, and warns of those that are
    near the least scale.
    """

    store: Store
    observe: Observer
    keep: Callable[[torch.Tensor], torch.Tensor] = lambda part: part

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        fold(op, self)


def fold(module: ModuleOp, into: FoldWeightsInto | None) -> None:
    """Fold every `gq.pack` of a module; see `FoldWeights`."""
    store = None if into is None else into.store
    weights = (op.key for op in module.walk() if isinstance(op, gq.WeightOp))
    taken: Taken = dict.fromkeys([*weights, *(store or ())])
    problems: list[str] = []
    small: list[str] = []
    for pack in [op for op in module.walk() if isinstance(op, gq.PackOp)]:
        try:
            fold_pack(pack, into, taken, small)
        except GqcError as error:
            problems.append(str(error))
    if len(problems) > 1:
        problems.insert(0, f"{len(problems)} weights cannot be quantized:")
    if problems:
        raise GqcError("\n  ".join(problems))
    if small:
        warnings.warn("\n  ".join(small), stacklevel=2)
    fold_channels(module, store)
    erase_unused_weights(module, store)


def fold_pack(
    pack: gq.PackOp, into: FoldWeightsInto | None, taken: Taken, small: list[str]
) -> None:
    """Replace one `gq.pack` by the weights that it computes. What is to be said of those that are
    near the least scale is put into `small`."""
    weight, type_ = weight_of(pack.weight), gq.block_scaled(pack.weight)
    assert weight is not None and type_ is not None
    names = part_names(joined(weight_names(pack.weight)), pack.layout.row.parts(type_))
    form = form_of(pack)
    # Layers may share a weight but not its scheme, and a model may use such a name itself.
    while any(taken.get(name, form) != form for name in names):
        names = [f"{name}_" for name in names]
    if into is not None and names[0] not in taken:
        parts = map(into.keep, compute(pack, into, small))
        into.store.update(zip(names, parts, strict=True))
    taken.update(dict.fromkeys(names, form))
    weights: list[gq.WeightOp] = []
    for name, part in zip(names, pack.parts, strict=True):
        assert isinstance(part.type, TensorType)
        weights.append(gq.WeightOp(name, part.type))
        weights[-1].location = pack.location
        weights[-1].result.name_hint = name.rsplit(".", 1)[-1]
        part.replace_all_uses_with(weights[-1].result)
    Rewriter.insert_op(weights, InsertPoint.after(weight))
    erase_chain(pack)


def joined(names: Sequence[str]) -> str:
    """Name of weights together: `attn.q_proj_k_proj.weight` of `attn.q_proj.weight` and another."""
    paths = [name.split(".") for name in names]
    head = common(paths)
    tail = common([path[head:][::-1] for path in paths])
    middle = ["_".join(path[head : len(path) - tail]) for path in paths]
    first = paths[0]
    parts = (*first[:head], "_".join(filter(None, middle)), *first[len(first) - tail :])
    return ".".join(filter(None, parts))


def common(paths: Sequence[Sequence[str]]) -> int:
    """How many parts of paths, from their start on, are the same in all."""
    return len(list(takewhile(lambda parts: len({*parts}) == 1, zip(*paths, strict=False))))


def form_of(op: Operation | Block) -> tuple[str, ...]:
    """All that the value of an operation depends on."""
    if isinstance(op, gq.WeightOp):
        return (op.key,)
    return str(op), *(each for value in op.operands for each in form_of(value.owner))  # pyright: ignore


def compute(pack: gq.PackOp, into: FoldWeightsInto, small: list[str]) -> tuple[torch.Tensor, ...]:
    """What a pack gives, with all that it depends on run in the interpreter."""
    from gqc.quantizers import underflow

    def seen(source: torch.Tensor | None, quantized: BlockScaled, op: Quantized) -> None:
        if isinstance(op, gq.QcastOp):
            assert source is not None
            check_range(source, quantized, op, pack)
            if said := underflow(source, quantized):
                small.append(f"{layer_name(op)}: {said}")
        into.observe(source, quantized, op)

    return run(pack, [evaluate(pack.weight, into.store, seen)])


def run(op: Operation, operands: Sequence[Any]) -> tuple[Any, ...]:
    """The results of an operation on weights. Raises GqcError, on inf and NaN too."""
    import torch

    from gqc.quantizers import refuse_specials

    try:
        with torch.no_grad():
            if isinstance(op, gq.QcastOp):
                refuse_specials(operands[0])
            return interpreter(ModuleOp([]), {}).run_op(op, tuple(operands))
    except ValueError as error:
        shape = list(gq.tensor_shape(op.operands[0]))
        raise GqcError(f"{layer_name(op)}: weight {shape}: {error}") from error


def evaluate(value: SSAValue, store: Store, seen: Observer | None = None) -> Any:
    """A value that depends on the side store alone; `seen` is told of quantized weights."""
    op = value.owner
    assert isinstance(op, Operation)
    if isinstance(op, gq.WeightOp):
        stored = store[op.key]
        if gq.block_scaled(value) is not None and seen is not None:
            seen(None, stored, op)  # pyright: ignore[reportArgumentType]
        return stored
    operands = [evaluate(operand, store, seen) for operand in op.operands]
    (result,) = run(op, operands)
    if isinstance(op, gq.QcastOp) and seen is not None:
        seen(operands[0], result, op)
    return result


def fold_channels(module: ModuleOp, store: Store | None) -> None:
    """Replace weights whose channels were scaled or permuted, and biases that were put together, by
    what they become."""
    names = Counter(op.key for op in module.walk() if isinstance(op, gq.WeightOp))
    names.update(name for name in store or () if name not in names)
    for op in [op for op in module.walk() if isinstance(op, Change)]:
        value = op.results[0]
        weight, readers = weight_of(value), [use.operation for use in value.uses]
        if weight is None or all(isinstance(reader, Change) for reader in readers):
            continue  # an activation, or not the last of its operations
        new = gq.WeightOp(changed_name(weight, op, names), value.type)  # pyright: ignore
        names[new.key] += 1
        if store is not None:
            store[new.key] = like(store[weight.key], evaluate(value, store))
        new.attributes.update(weight.attributes)
        new.location, new.result.name_hint = weight.location, weight.result.name_hint
        Rewriter.insert_op(new, InsertPoint.before(op))
        value.replace_all_uses_with(new.result)
        erase_chain(op)


def changed_name(weight: gq.WeightOp, op: Change, names: Mapping[str, int]) -> str:
    """Name of a changed weight: its own, unless something reads the weight as it was; of several,
    theirs together."""
    if isinstance(op, gq.ConcatOp):
        name = joined([w.key for source in op.sources if (w := weight_of(source)) is not None])
    elif names[name := weight.key] == 1 and is_sole_reader(op.source):
        return name
    while name in names:
        name = f"{name}_"
    return name


def like(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """A tensor as a parameter, if it takes the place of one."""
    from torch import nn

    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def check_range(
    source: torch.Tensor, quantized: BlockScaled, cast: gq.QcastOp, pack: gq.PackOp
) -> None:
    """Kernels that decode codes may multiply in the weight's own type: no value may be beyond it.

    A scale that is rounded up may take the greatest weights of float16 there. The layout `bytes` is
    of matrix units, which multiply codes and scales of any range.
    """
    import torch

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


def erase_chain(op: Operation) -> None:
    """Erase an operation, and then whatever only it read, up to the weights."""
    sources = dict.fromkeys(operand.owner for operand in op.operands)
    op.detach()
    op.erase()
    for source in sources:
        if not isinstance(source, Operation) or isinstance(source, gq.WeightOp):
            continue
        if not any(result.uses for result in source.results):
            erase_chain(source)


def erase_unused_weights(module: ModuleOp, store: Store | None) -> None:
    """Erase weights that no one reads, in the module and in the store."""
    weights = [op for op in module.walk() if isinstance(op, gq.WeightOp)]
    used = {w.key for w in weights if w.result.uses} | written_buffers(module)
    for op in weights:
        if not op.result.uses:
            op.detach()
            op.erase()
    for name in [n for n in store or () if n not in used]:
        assert store is not None
        del store[name]
