"""Fold weights: compute what depends on the side store alone, once, at compile time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.gq_channels import ChannelOp
from gqc.dialects.interpret import interpreter
from gqc.errors import GqcError
from gqc.formats.layouts import Part
from gqc.passes.helpers import is_sole_reader, layer_name, weight_of, written_buffers

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled

Store = MutableMapping[str, "torch.Tensor"]
Quantized = gq.QcastOp | gq.WeightOp
"""What gives a quantized weight: the cast of a dense one, or the store."""
Observer = Callable[["torch.Tensor | None", "BlockScaled", Quantized], None]
"""Called with each weight, None if it is stored quantized, its quantized form, and its maker."""
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
        fold(op, None, None)


@dataclass(frozen=True)
class FoldWeightsInto(FoldWeights):
    """`FoldWeights` over a store: parts are computed into it, dense weights no one reads go.

    `observe` sees each weight beside its quantized form. Raises GqcError that names every weight
    that cannot be quantized.
    """

    store: Store
    observe: Observer

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        fold(op, self.store, self.observe)


def fold(module: ModuleOp, store: Store | None, observe: Observer | None) -> None:
    """Fold every `gq.pack` of a module; see `FoldWeights`."""
    weights = (op.key for op in module.walk() if isinstance(op, gq.WeightOp))
    taken: Taken = dict.fromkeys([*weights, *(store or ())])
    problems: list[str] = []
    for pack in [op for op in module.walk() if isinstance(op, gq.PackOp)]:
        try:
            fold_pack(pack, store, observe, taken)
        except GqcError as error:
            problems.append(str(error))
    if len(problems) > 1:
        problems.insert(0, f"{len(problems)} weights cannot be quantized:")
    if problems:
        raise GqcError("\n  ".join(problems))
    fold_channels(module, store)
    erase_unused_weights(module, store)


def fold_pack(pack: gq.PackOp, store: Store | None, observe: Observer | None, taken: Taken) -> None:
    """Replace one `gq.pack` by the weights that it computes."""
    weight, type_ = weight_of(pack.weight), gq.block_scaled(pack.weight)
    assert weight is not None and type_ is not None
    names = part_names(weight.key, pack.layout.row.parts(type_))
    chain = chain_of(pack)[:-1]
    others = [weight_of(value) for op in chain for value in op.operands[1:]]
    form = tuple(map(str, (type_, pack.layout, *chain, *others)))
    # Layers may share a weight but not its scheme, and a model may use such a name itself.
    while any(taken.get(name, form) != form for name in names):
        names = [f"{name}_" for name in names]
    if store is not None and names[0] not in taken:
        store.update(zip(names, compute(pack, store, observe), strict=True))
    taken.update(dict.fromkeys(names, form))
    parts: list[gq.WeightOp] = []
    for name, part in zip(names, pack.parts, strict=True):
        assert isinstance(part.type, TensorType)
        parts.append(gq.WeightOp(name, part.type))
        parts[-1].location = pack.location
        parts[-1].result.name_hint = name.rsplit(".", 1)[-1]
        part.replace_all_uses_with(parts[-1].result)
    Rewriter.insert_op(parts, InsertPoint.after(weight))
    erase_chain(pack)


def chain_of(pack: gq.PackOp) -> list[Operation]:
    """The operations from the weight to its packed form, in order, without the weight."""
    chain: list[Operation] = [pack]
    while not isinstance(op := chain[0].operands[0].owner, gq.WeightOp):
        assert isinstance(op, Operation)
        chain.insert(0, op)
    return chain


def compute(pack: gq.PackOp, store: Store, observe: Observer | None) -> tuple[torch.Tensor, ...]:
    """Run the chain in the interpreter."""
    chain = chain_of(pack)
    source = chain[0].operands[0]
    values = (evaluate(source, store),)
    if isinstance(source.owner, gq.WeightOp) and gq.block_scaled(source) and observe is not None:
        observe(None, values[0], source.owner)
    for op in chain:
        source = values[0]
        values = run(op, source, store)
        if isinstance(op, gq.QcastOp):
            check_range(source, values[0], op, pack)
            if observe is not None:
                observe(source, values[0], op)
    return values


def run(op: Operation, source: Any, store: Store) -> tuple[Any, ...]:
    """The results of an operation on a form of a weight; other operands are evaluated."""
    import torch

    others = (evaluate(value, store) for value in op.operands[1:])
    try:
        with torch.no_grad():
            return interpreter(ModuleOp([]), store).run_op(op, (source, *others))
    except ValueError as error:
        shape = list(gq.tensor_shape(op.operands[0]))
        raise GqcError(f"{layer_name(op)}: weight {shape}: {error}") from error


def evaluate(value: SSAValue, store: Store) -> Any:
    """A value that depends on the side store alone."""
    op = value.owner
    assert isinstance(op, Operation)
    if isinstance(op, gq.WeightOp):
        return store[op.key]
    return run(op, evaluate(op.operands[0], store), store)[0]


def fold_channels(module: ModuleOp, store: Store | None) -> None:
    """Replace weights whose channels were scaled or permuted by what they become."""
    names = Counter(op.key for op in module.walk() if isinstance(op, gq.WeightOp))
    names.update(name for name in store or () if name not in names)
    for op in [op for op in module.walk() if isinstance(op, ChannelOp)]:
        weight, readers = weight_of(op.source), [use.operation for use in op.result.uses]
        if weight is None or all(isinstance(reader, ChannelOp) for reader in readers):
            continue  # an activation, or not the last of its operations
        new = gq.WeightOp(changed_name(weight, op, names), op.result.type)
        names[new.key] += 1
        if store is not None:
            store[new.key] = like(store[weight.key], evaluate(op.result, store))
        new.attributes.update(weight.attributes)
        new.location, new.result.name_hint = weight.location, weight.result.name_hint
        Rewriter.insert_op(new, InsertPoint.before(op))
        op.result.replace_all_uses_with(new.result)
        erase_chain(op)


def changed_name(weight: gq.WeightOp, op: ChannelOp, names: Mapping[str, int]) -> str:
    """Name of a changed weight: its own, unless something reads the weight as it was."""
    name = weight.key
    if names[name] == 1 and is_sole_reader(op.source):
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
    """Erase an operation, and then whatever only it read, up to the weight."""
    source = op.operands[0].owner
    op.detach()
    op.erase()
    if not isinstance(source, Operation) or isinstance(source, gq.WeightOp):
        return
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
