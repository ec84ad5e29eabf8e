"""Fold weights: what depends on the side store alone is computed once, before the model runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import takewhile

from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp, TensorType
from xdsl.ir import Block, Operation, SSAValue
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.dialects.gq_channels import ChannelOp
from gqc.formats.layouts import Part
from gqc.passes.helpers import is_sole_reader, weight_names, weight_of, written_buffers

Change = ChannelOp | gq.ConcatOp
"""What makes other weights of weights, dense ones among them."""
Form = tuple[str, ...]
"""All that a value depends on."""


@dataclass(frozen=True)
class FoldWeights(ModulePass):
    """kernels → kernels: functions read parts of packed weights from the store, by name.

    `gq.materialize` says how they are computed of the weights that the store has before. Weights
    whose channels were scaled or permuted, and biases that were put together, are stored likewise.
    """

    name = "fold-weights"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        folding = Folding(op)
        for pack in [each for each in op.walk() if isinstance(each, gq.PackOp)]:
            folding.fold_pack(pack)
        for change in [each for each in op.walk() if isinstance(each, Change)]:
            folding.fold_change(change)
        erase_unused_weights(op)
        if folding.body.ops:
            work = gq.MaterializeOp(folding.body)
            Rewriter.insert_op(work, InsertPoint.at_start(op.body.block))


@dataclass
class Folding:
    """The work that moves out of the functions of a module, and the names that it gives."""

    module: ModuleOp
    body: Block = field(default_factory=Block)
    moved: dict[SSAValue, SSAValue] = field(default_factory=dict)
    """Values of functions, as the body computes them."""
    taken: dict[str, Form | None] = field(default_factory=dict)
    """What each packed weight was made of, by the name of its first part; None where a name is
    taken by something else."""

    def __post_init__(self) -> None:
        weights = [op.key for op in self.module.walk() if isinstance(op, gq.WeightOp)]
        self.names = Counter(weights)
        self.taken = dict.fromkeys([*weights, *written_buffers(self.module)])

    def fold_pack(self, pack: gq.PackOp) -> None:
        """Replace a `gq.pack` by weights of its parts, stored once for equal ones."""
        weight, type_ = weight_of(pack.weight), gq.block_scaled(pack.weight)
        assert weight is not None and type_ is not None
        names = part_names(joined(weight_names(pack.weight)), pack.layout.row.parts(type_))
        form = form_of(pack)
        # Layers may share a weight but not its scheme, and a model may use such a name itself.
        while any(self.taken.get(name, form) != form for name in names):
            names = [f"{name}_" for name in names]
        if names[0] not in self.taken:
            self.store(pack.parts, names)
        self.taken.update(dict.fromkeys(names, form))
        weights: list[gq.WeightOp] = []
        for name, part in zip(names, pack.parts, strict=True):
            assert isinstance(part.type, TensorType)
            weights.append(gq.WeightOp(name, part.type))
            weights[-1].location = pack.location
            weights[-1].result.name_hint = name.rsplit(".", 1)[-1]
            part.replace_all_uses_with(weights[-1].result)
        Rewriter.insert_op(weights, InsertPoint.after(weight))
        erase_chain(pack)

    def fold_change(self, op: Change) -> None:
        """Replace the last of some changes of a weight by a weight that has them."""
        value = op.results[0]
        weight, readers = weight_of(value), [use.operation for use in value.uses]
        if weight is None or all(isinstance(reader, Change) for reader in readers):
            return  # an activation, or not the last of its operations
        assert isinstance(value.type, TensorType)
        new = gq.WeightOp(changed_name(weight, op, self.names), value.type)
        self.names[new.key] += 1
        self.store([value], [new.key])
        new.attributes.update(weight.attributes)
        new.location, new.result.name_hint = weight.location, weight.result.name_hint
        Rewriter.insert_op(new, InsertPoint.before(op))
        value.replace_all_uses_with(new.result)
        erase_chain(op)

    def store(self, values: Sequence[SSAValue], names: Sequence[str]) -> None:
        """Have the body compute values, and put them into the store."""
        store = gq.StoreOp([self.move(value) for value in values], names)
        self.body.add_op(store)

    def move(self, value: SSAValue) -> SSAValue:
        """A value as the body computes it."""
        op = value.owner
        assert isinstance(op, Operation)
        if value not in self.moved:
            for operand in op.operands:
                self.move(operand)
            new = op.clone(self.moved)
            new.location = op.location
            self.body.add_op(new)
        return self.moved[value]


def part_names(fqn: str, parts: Sequence[Part]) -> list[str]:
    """Names in the side store of the parts of a packed weight, in order."""
    kinds = {"codes": "packed"}
    words = [[fqn, kinds.get(p.kind, p.kind), p.suffix] for p in parts]
    return ["_".join(filter(None, each)) for each in words]


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


def form_of(op: Operation | Block) -> Form:
    """All that the value of an operation depends on."""
    if isinstance(op, gq.WeightOp):
        return (op.key,)
    return str(op), *(each for value in op.operands for each in form_of(value.owner))  # pyright: ignore


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


def erase_unused_weights(module: ModuleOp) -> None:
    """Erase weights that no one reads."""
    for op in [op for op in module.walk() if isinstance(op, gq.WeightOp)]:
        if not op.result.uses:
            op.detach()
            op.erase()
