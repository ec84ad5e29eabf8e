"""A model takes its parameters from a source, quantized weights of linear layers as they are."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import fx, nn
from torch.export import ExportedProgram

from gqc.checkpoints.source import Source
from gqc.checkpoints.weights import (
    Permuted,
    Prescaled,
    Rotated,
    Transposed,
    Weight,
    dense,
)
from gqc.dialects import gq
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.frontend.export_fx import tensor_of
from gqc.frontend.linears import copy_shared, is_conv1d, is_linear, peculiarity
from gqc.frontend.signature import Imported, canonical_names
from gqc.legality import undecoded, unscaled
from gqc.passes.adopt_weights import Form
from gqc.passes.helpers import count
from gqc.passes.quantize_activations import input_scale
from gqc.report import CastKey


class StoredWeights(dict[str, torch.Tensor]):
    """Tensors by name. A quantized weight of the source is read each time it is looked up."""

    def __init__(self, tensors: dict[str, torch.Tensor], stored: Stored):
        super().__init__(tensors)
        self.stored = stored

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or name in self.stored.forms

    def __missing__(self, name: str) -> Any:
        if name not in self.stored.forms:
            raise KeyError(name)
        return self.stored.read(name)


@dataclass
class Stored:
    """A model with the parameters of a source.

    forms: of the quantized weights, by name, whose parameters in the model are placeholders.
    tensors: what their inputs are gathered, multiplied or quantized by, by names in the side store.
    """

    model: nn.Module
    source: Source
    device: torch.device
    forms: dict[str, Form] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def noise(self) -> dict[CastKey, float]:
        """SQNR in dB of the quantized weights of which it is known."""
        origins = {name: self.source.origin(name) for name in self.forms}
        return {
            (name, form.type, form.origin): sqnr
            for name, form in self.forms.items()
            if (sqnr := origins[name].sqnr) is not None
        }

    def side_store(self, weights: dict[str, torch.Tensor]) -> StoredWeights:
        """A side store of these weights but the placeholders, and of what is stored."""
        rest = {name: t for name, t in weights.items() if name not in self.forms}
        return StoredWeights({**rest, **self.tensors}, self)

    def read(self, name: str) -> BlockScaled:
        """The quantized weight [N, K] of a form, in blocks of one row, on the device."""
        weight = in_rows(codes_of(self.source.read(name)))
        fields = ("codes", "scale", "zero", "tensor_scale")
        parts = {f: part for f in fields if (part := getattr(weight, f)) is not None}
        return replace(weight, **{f: part.to(self.device) for f, part in parts.items()})

    def dense(self, name: str) -> torch.Tensor:
        """A parameter in the dtype that the model has it in, on the device."""
        dtype = self.model.get_parameter(name).dtype
        return dense(self.source.read(name)).to(self.device, dtype)

    def settle(self, imported: Imported, parts: nn.Module | None) -> None:
        """Give what still reads dense weights theirs, once matmuls have adopted what they can."""
        read = {op.key for op in imported.module.walk() if isinstance(op, gq.WeightOp)}
        for name in self.forms.keys() & read:
            imported.weights[name] = nn.Parameter(self.dense(name), requires_grad=False)
            if parts is not None:
                put(parts, [name], imported.weights[name])


def take_weights(model: nn.Module | ExportedProgram, source: Source) -> Stored:
    """A copy of the model with the parameters of a source, quantized weights still to be read.

    Those that no plain linear layer reads are dequantized. Raises GqcError that names the
    parameters of the model that the source lacks, or one that it has in another shape.
    """
    if not isinstance(model, nn.Module) or isinstance(model, fx.GraphModule):
        raise GqcError("only an nn.Module takes stored weights: give the model itself")
    devices = {t.device for t in (*model.parameters(), *model.buffers())} - {torch.device("meta")}
    stored = Stored(copy_shared(model), source, min(devices, default=torch.device("cpu"), key=str))
    aliases = aliases_of(stored.model)
    for name in known_names(stored.model, source, aliases):
        take(stored, name, aliases[name])
    return stored


def take(stored: Stored, name: str, aliases: list[str]) -> None:
    """Give the model one parameter, or the form of a quantized weight."""
    weight, target = stored.source.read(name), tensor_of(stored.model, name)
    shape = logical_shape(weight)
    if shape != target.shape:
        raise GqcError(f"{name} is {list(shape)}, the model has {list(target.shape)}")
    if isinstance(weight, torch.Tensor):
        value = weight.to(stored.device, target.dtype)
    elif is_for_linears(stored.model, aliases, weight):
        stored.forms[aliases[0]] = form_of(stored, name, weight)
        value = torch.zeros((), dtype=target.dtype).expand(shape)  # takes no memory
    else:
        value = dense(weight).to(stored.device, target.dtype)
    put(stored.model, aliases, value)


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


def known_names(model: nn.Module, source: Source, aliases: dict[str, list[str]]) -> list[str]:
    """Names of what the model takes from a source.

    Raises GqcError if it has parameters that are not there; warns of what it has no parameter for.
    """
    names = source.names()
    given = {alias for name in names for alias in aliases.get(name, ())}
    if missing := [name for name in model.state_dict() if name not in given]:
        raise GqcError(
            f"{count(len(missing), 'parameter')} of {type(model).__name__} not stored: "
            f"{some(missing)}; give the model that the weights are of"
        )
    if unknown := [name for name in names if name not in aliases]:
        warnings.warn(f"{type(model).__name__} has no {some(unknown)}: left unread", stacklevel=4)
    return [name for name in names if name in aliases]


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
    assert not isinstance(weight, torch.Tensor)
    return weight if isinstance(weight, BlockScaled) else weight.weight


def in_rows(weight: BlockScaled) -> BlockScaled:
    """The same weight [N, K] in blocks of one row, each with the scale of the block it is from."""
    rows, _ = weight.type.block_of(weight.codes.shape)
    if rows == 1:
        return weight
    parts = (weight.scale, weight.zero)
    scale, zero = (None if p is None else p.repeat_interleave(rows, 0) for p in parts)
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


def is_for_linears(model: nn.Module, names: Iterable[str], weight: Weight) -> bool:
    """Whether a weight is, under all its names, that of a plain linear layer."""
    for name in names:
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        if leaf != "weight" or not is_linear(owner) or peculiarity(owner):
            return False
        if is_conv1d(owner) != isinstance(weight, Transposed):
            return False
    return codes_of(weight).codes.ndim == 2


def form_of(stored: Stored, name: str, weight: Weight) -> Form:
    """The form of a weight; what its inputs go through is put into `stored.tensors`."""
    codes, layer = in_rows(codes_of(weight)), name.removesuffix(".weight")
    problem = undecoded(codes.type) or unscaled(codes.type, codes.codes.shape)
    if isinstance(weight, Permuted) and weight.dim == 0:
        problem = "its rows are stored in another order"
    if problem is not None:
        return Form(name, kept=f"dequantized: {problem}")
    form = Form(name, codes.type.text, stored.source.origin(name).method)
    match weight:
        case Permuted():
            form = replace(form, order=keep(stored, f"{layer}.input_order", weight.order))
        case Prescaled():
            form = replace(
                form, factor=keep(stored, f"{layer}.input_factor", weight.factor.float())
            )
        case Rotated():
            form = replace(form, rotation=str(weight.block))
    activation = stored.source.activation(name)
    if activation is None:
        return form
    scale = stored.source.input_scale(name)
    if scale is not None:
        stored.tensors[input_scale(layer)] = scale.to(stored.device).reshape(1)
    return replace(form, activation=str(activation))


def keep(stored: Stored, name: str, tensor: torch.Tensor) -> str:
    """Put a tensor into the side store; the name of it, or of an equal one that is there."""
    for other, known in stored.tensors.items():
        if known.dtype == tensor.dtype and torch.equal(known, tensor.to(known.device)):
            return other
    stored.tensors[name] = tensor.to(stored.device)
    return name
