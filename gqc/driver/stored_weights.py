"""A model takes its parameters from a source, quantized weights of linear layers as they are."""

from __future__ import annotations

import re
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from gqc.checkpoints.places import Place, Places
from gqc.checkpoints.source import Origin, Source
from gqc.checkpoints.weights import (
    Permuted,
    Prescaled,
    Rotated,
    Transposed,
    Weight,
    dense,
)
from gqc.checkpoints.writer import unwrapped
from gqc.dialects import gq
from gqc.driver.report import CastKey
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled, repeated
from gqc.frontend.graph_modules import tensor_of
from gqc.frontend.linears import copy_shared, is_conv1d, is_linear, peculiarity
from gqc.frontend.signature import Imported, canonical_names
from gqc.legality import undecoded, unscaled
from gqc.passes.adopt_weights import Entry
from gqc.passes.helpers import count
from gqc.passes.quantize_activations import input_scale
from gqc.runtime.embedding import QuantizedEmbedding, takes

STACKS = 3
"""Stacks of experts in memory at a time: as many as hold the matrices of one layer."""


class StoredWeights(dict[str, torch.Tensor]):
    """Tensors by name. A quantized weight of the source is read each time it is looked up."""

    def __init__(self, tensors: dict[str, torch.Tensor], stored: Stored):
        super().__init__(tensors)
        self.stored = stored

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.stored.entries

    def __missing__(self, name: str) -> Any:
        if name not in self.stored.entries:
            raise KeyError(name)
        return self.stored.read(name)


@dataclass
class Stored:
    """A model with the parameters of a source.

    entries: of the quantized weights, whose parameters in the model are placeholders, by the names
    of these: the first of those that a tied parameter has. places: where parameters are in the
    source. tensors: what their inputs are gathered, multiplied or quantized by, by names in the
    side store. stacks: of experts, read last. tables: what quantized those of embeddings, by their
    names in the model.
    """

    model: nn.Module
    source: Source
    device: torch.device
    entries: dict[str, Entry] = field(default_factory=dict)
    places: dict[str, Place] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    stacks: OrderedDict[str, Weight] = field(default_factory=OrderedDict)
    tables: dict[str, Origin] = field(default_factory=dict)

    @property
    def noise(self) -> dict[CastKey, float]:
        """SQNR in dB of the quantized weights of which it is known."""
        return {
            (name, entry.type, entry.origin): sqnr
            for name, entry in self.entries.items()
            if (sqnr := self.source.origin(self.places[name].name).sqnr) is not None
        }

    def weight(self, name: str) -> Weight:
        """A parameter of the model as the source has it.

        Stacks of experts are kept while others of theirs may be asked for: at most `STACKS`.
        """
        place = self.places[name]
        if place.stack is None:
            return self.source.read(place.name)
        if place.name not in self.stacks:
            while len(self.stacks) >= STACKS:
                self.stacks.popitem(last=False)
            self.stacks[place.name] = self.source.read(place.name)
        self.stacks.move_to_end(place.name)
        return place.of(self.stacks[place.name])

    def side_store(self, weights: dict[str, torch.Tensor]) -> StoredWeights:
        """A side store of these weights but the placeholders, and of what is stored."""
        rest = {name: t for name, t in weights.items() if name not in self.entries}
        return StoredWeights({**rest, **self.tensors}, self)

    def read(self, name: str) -> BlockScaled:
        """The quantized weight [N, K] of an entry, in blocks of one row, on the device."""
        return on_device(in_rows(codes_of(self.weight(name))), self.device)

    def dense(self, name: str) -> torch.Tensor:
        """A parameter in the dtype that the model has it in, on the device."""
        dtype = self.model.get_parameter(name).dtype
        return dense(self.weight(name)).to(self.device, dtype)

    def settle(self, imported: Imported, parts: nn.Module | None) -> None:
        """Give what still reads dense weights theirs, once matmuls have adopted what they can."""
        self.stacks.clear()
        read = {op.key for op in imported.module.walk() if isinstance(op, gq.WeightOp)}
        for name in self.entries.keys() & read:
            imported.weights[name] = nn.Parameter(self.dense(name), requires_grad=False)
            if parts is not None:
                put(parts, [name], imported.weights[name])


def take_weights(model: nn.Module | ExportedProgram, source: Source) -> Stored:
    """A copy of the model with the parameters of a source, quantized weights still to be read.

    Those that neither plain linear layers nor embeddings read are dequantized. Tied parameters stay
    so, but where one is quantized and a linear layer's, as a head's beside its embedding: the layer
    reads the codes, the embedding codes of its own, others a dense copy. Raises GqcError that names
    the parameters of the model that the source lacks, or one that it has in another shape.
    """
    if not isinstance(model, nn.Module) or isinstance(model, fx.GraphModule):
        raise GqcError("only an nn.Module takes stored weights: give the model itself")
    devices = {t.device for t in (*model.parameters(), *model.buffers())} - {torch.device("meta")}
    stored = Stored(copy_shared(model), source, min(devices, default=torch.device("cpu"), key=str))
    aliases = aliases_of(stored.model)
    stored.places = known_places(stored.model, source, aliases)
    for name in list(stored.places):
        twins = [twin for twin in aliases[name] if twin in stored.places]
        apart = len(twins) > 1 and any(is_quantized(stored.weight(twin)) for twin in twins)
        take(stored, name, [name] if apart else aliases[name])
    stored.stacks.clear()
    return stored


def is_quantized(weight: Weight) -> bool:
    return not isinstance(weight, torch.Tensor)


def take(stored: Stored, name: str, aliases: list[str]) -> None:
    """Give the model one parameter, or the entry of a quantized weight."""
    weight, target = stored.weight(name), tensor_of(stored.model, name)
    shape = logical_shape(weight)
    if shape != target.shape:
        raise GqcError(f"{name} is {list(shape)}, the model has {list(target.shape)}")
    if isinstance(weight, torch.Tensor):
        put(stored.model, aliases, weight.to(stored.device, target.dtype))
        return
    linears = [alias for alias in aliases if is_for_linear(stored.model, alias, weight)]
    others = [alias for alias in aliases if alias not in linears]
    if linears:
        entry = entry_of(stored, name, weight)
        if entry.kept and others:
            linears, others = [], aliases  # one dense weight for all
        else:
            stored.entries[linears[0]] = replace(entry, weight=linears[0])
            stored.places[linears[0]] = stored.places[name]
            placeholder = torch.zeros((), dtype=target.dtype).expand(shape)  # takes no memory
            put(stored.model, linears, placeholder)
    others = embed(stored, name, others, weight, target.dtype)
    if others:
        put(stored.model, others, dense(weight).to(stored.device, target.dtype))


def embed(
    stored: Stored, name: str, aliases: list[str], weight: Weight, dtype: torch.dtype
) -> list[str]:
    """Make embeddings look up the rows of a quantized table; the names that others have for it."""
    owners = {alias: stored.model.get_submodule(alias.rpartition(".")[0]) for alias in aliases}
    tables = {a: owner for a, owner in owners.items() if a.endswith("weight") and takes(owner)}
    if not tables or not isinstance(weight, BlockScaled) or weight.codes.ndim != 2:
        return aliases
    table = on_device(in_rows(weight), stored.device)
    made = {id(o): QuantizedEmbedding(table, o, dtype) for o in tables.values()}  # pyright: ignore
    stored.tables |= dict.fromkeys(tables, stored.source.origin(stored.places[name].name))
    found = [*stored.model.named_modules(remove_duplicate=False)]
    for path, module in found:
        if id(module) in made:
            stored.model.set_submodule(path, made[id(module)])
    return [alias for alias in aliases if alias not in tables]


def on_device(weight: BlockScaled, device: torch.device) -> BlockScaled:
    fields = ("codes", "scale", "zero", "tensor_scale")
    parts = {f: part for f in fields if (part := getattr(weight, f)) is not None}
    return replace(weight, **{f: part.to(device) for f, part in parts.items()})


def aliases_of(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter and buffer, by each of them, the canonical one first."""
    tensors: dict[str, torch.Tensor] = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    names: dict[str, list[str]] = {}
    canonical = canonical_names(tensors)
    for name, first in canonical.items():
        names.setdefault(first, []).append(name)
    return {name: names[first] for name, first in canonical.items()}


def known_places(
    model: nn.Module, source: Source, aliases: dict[str, list[str]]
) -> dict[str, Place]:
    """Where what the model takes from a source is, by the names of its parameters.

    Raises GqcError if it has parameters that are not there, or one that is there twice, or if
    modules that run have more there; warns of other things that it has no parameter for.
    """
    known = Places(model)
    found = {name: known.find(name) for name in source.names()}
    places: dict[str, Place] = {}
    for each in found.values():
        if twice := places.keys() & each.keys():
            first = min(twice)
            stored = f"{places[first].name} and {each[first].name}"
            raise GqcError(f"{first} is stored twice, in {stored}: remove one")
        places |= each
    given = {alias for name in places for alias in aliases[name]}
    unknown = [name for name, parameters in found.items() if not parameters]
    if missing := [name for name in model.state_dict() if name not in given]:
        others = f"; stored, but not known to it: {some(unknown)}" if unknown else ""
        raise GqcError(
            f"{count(len(missing), 'parameter')} of {type(model).__name__} not stored: "
            f"{some(missing)}{others}; give the model that the weights are of"
        )
    refuse_unread(model, source, unknown, known)
    if unknown:
        warnings.warn(f"{type(model).__name__} has no {some(unknown)}: left unread", stacklevel=4)
    return places


SPARE = re.compile(r"(^|\.)((rotary_emb\.)?inv_freq|(q|k|v|kv|prob|output)_scale)$")
"""What changes nothing where it is not read: frequencies, which a config says, and scales of caches
and outputs, which are not quantized here."""


def refuse_unread(model: nn.Module, source: Source, unknown: list[str], known: Places) -> None:
    """Raises GqcError that names parameters without a place, of modules of the model that run.

    A bias of zeros adds nothing, and what the model's class says that it does not need is spare.
    """
    spare = [*(getattr(model, "_keys_to_ignore_on_load_unexpected", None) or ()), SPARE]
    owners: dict[str, str] = {}
    for name in unknown:
        renamed, _ = known.renamed(name)
        owner = owner_of(model, renamed)
        if owner is None or any(re.search(pattern, renamed) for pattern in spare):
            continue
        if not (name.endswith(".bias") and is_zero(source.read(name))):
            owners[name] = owner
    if owners:
        first = next(iter(owners.values()))
        raise GqcError(
            f"{some([*owners])} stored, which {type(model).__name__} does not have in "
            f"{first or 'itself'}: it would compute something else without a word; give the model "
            "that the weights are of"
        )


def owner_of(model: nn.Module, name: str) -> str | None:
    """The innermost module that a parameter would be in; None where it would be beside all that
    runs: a module that a list or the model itself has not."""
    owner, rest = name.rpartition(".")[0], 0
    while owner and not has_module(model, owner):
        owner, rest = owner.rpartition(".")[0], rest + 1
    lists = isinstance(model.get_submodule(owner), nn.ModuleList | nn.ModuleDict | nn.Sequential)
    tops = ("", getattr(model, "base_model_prefix", ""))
    return None if rest and (lists or owner in tops) else owner


def has_module(model: nn.Module, path: str) -> bool:
    try:
        model.get_submodule(path)
    except AttributeError:
        return False
    return True


def is_zero(weight: Weight) -> bool:
    return isinstance(weight, torch.Tensor) and not bool(weight.any())


def some(names: list[str]) -> str:
    """The first few names."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def logical_shape(weight: Weight) -> torch.Size:
    """Shape of the dense parameter."""
    if isinstance(weight, torch.Tensor):
        return weight.shape
    shape = codes_of(weight).codes.shape
    return torch.Size((*shape[:-2], *shape[:-3:-1])) if isinstance(weight, Transposed) else shape


def codes_of(weight: Weight) -> BlockScaled:
    """The quantized weight itself, without what its inputs go through."""
    _, inner = unwrapped(weight)
    assert isinstance(inner, BlockScaled)
    return inner


def in_rows(weight: BlockScaled) -> BlockScaled:
    """The same weight [N, K] in blocks of one row, each with the scale of the block it is from."""
    rows, _ = weight.type.block_of(weight.codes.shape)
    if rows == 1:
        return weight
    parts = (weight.scale, weight.zero)
    scale, zero = (None if p is None else repeated(p, rows, 0) for p in parts)
    assert scale is not None
    type_ = weight.type.with_block((1, weight.type.block.data[-1].data))
    return replace(weight, type=type_, scale=scale, zero=zero)


def put(model: nn.Module, names: Iterable[str], value: torch.Tensor) -> None:
    """Set a parameter, or a buffer, under all its names."""
    parameter = nn.Parameter(value, requires_grad=False) if value.is_floating_point() else None
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf in owner._parameters:
            owner._parameters[leaf] = parameter
        else:
            owner._buffers[leaf] = value


def is_for_linear(model: nn.Module, name: str, weight: Weight) -> bool:
    """Whether a weight is, under this name, that of a plain linear layer."""
    path, _, leaf = name.rpartition(".")
    owner = model.get_submodule(path)
    if leaf != "weight" or not is_linear(owner) or peculiarity(owner):
        return False
    return is_conv1d(owner) == isinstance(weight, Transposed) and codes_of(weight).codes.ndim == 2


def entry_of(stored: Stored, name: str, weight: Weight) -> Entry:
    """The entry of a weight; what its inputs go through is put into `stored.tensors`."""
    wrappers, inner = unwrapped(weight)
    assert isinstance(inner, BlockScaled)
    codes, layer = in_rows(inner), name.rpartition(".")[0]
    problem = undecoded(codes.type) or unscaled(codes.type, codes.codes.shape)
    if any(isinstance(wrapper, Permuted) and wrapper.dim == 0 for _, wrapper in wrappers):
        problem = "its rows are stored in another order"
    if problem is not None:
        return Entry(name, kept=f"dequantized: {problem}")
    changes = [change_of(stored, layer, wrapper) for _, wrapper in wrappers]
    place = stored.places[name].name
    activation = stored.source.activation(place)
    scale = None if activation is None else stored.source.input_scale(place)
    if scale is not None:
        stored.tensors[input_scale(layer)] = scale.to(stored.device).reshape(1)
    return Entry(
        name,
        codes.type.text,
        stored.source.origin(place).method,
        " ".join(filter(None, changes)),
        "" if activation is None else str(activation),
    )


def change_of(stored: Stored, layer: str, wrapper: Weight) -> str:
    """What the input of a layer goes through for a wrapper of its weight, as an `Entry` says it."""
    match wrapper:
        case Permuted():
            return f"gather={keep(stored, layer, 'input_order', wrapper.order)}"
        case Prescaled():
            return f"scale={keep(stored, layer, 'input_factor', wrapper.factor.float())}"
        case Rotated():
            return f"rotate={wrapper.block}"
    return ""


def keep(stored: Stored, layer: str, leaf: str, tensor: torch.Tensor) -> str:
    """Put a tensor into the side store; the name of it, or of an equal one that is there."""
    name = f"{layer}.{leaf}".lstrip(".")
    for other, known in stored.tensors.items():
        if known.dtype == tensor.dtype and torch.equal(known, tensor.to(known.device)):
            return other
    stored.tensors[name] = tensor.to(stored.device)
    return name
