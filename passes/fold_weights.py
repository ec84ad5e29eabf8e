"""Fold weights: compute what depends on the side store alone, once, at compile time."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import Operation
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.interpret import interpreter
from gqc.errors import GqcError
from gqc.formats.layouts import Part
from gqc.passes.helpers import layer_name, weight_of, written_buffers

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled

Store = MutableMapping[str, "torch.Tensor"]
Observer = Callable[["torch.Tensor", "BlockScaled", gq.QcastOp], None]
"""Called with each weight, its quantized form, and the cast that made it."""
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
    erase_unused_weights(module, store)


def fold_pack(pack: gq.PackOp, store: Store | None, observe: Observer | None, taken: Taken) -> None:
    """Replace one `gq.pack` by the weights that it computes."""
    weight, type_ = weight_of(pack.weight), gq.block_scaled(pack.weight)
    assert weight is not None and type_ is not None
    names = part_names(weight.key, pack.layout.row.parts(type_))
    form = tuple(map(str, (type_, pack.layout, *chain_of(pack)[:-1])))
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
    import torch

    run = interpreter(ModuleOp([]), store)
    weight, chain = weight_of(pack.weight), chain_of(pack)
    assert weight is not None
    values = run.run_op(weight, ())
    for op in chain:
        source = values[0]
        try:
            with torch.no_grad():
                values = run.run_op(op, values)
        except ValueError as error:
            shape = list(gq.tensor_shape(op.operands[0]))
            raise GqcError(f"{layer_name(op)}: weight {shape}: {error}") from error
        if isinstance(op, gq.QcastOp):
            check_range(source, values[0], op, pack)
            if observe is not None:
                observe(source, values[0], op)
    return values


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
