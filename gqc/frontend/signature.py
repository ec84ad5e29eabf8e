"""What the IR does not hold of a model: its tensors, and how it is called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import TreeSpec
from xdsl.dialects.builtin import ModuleOp


class Leaf(Enum):
    """Marks a leaf of the inputs or outputs that is a value of the IR function."""

    VALUE = "value"


@dataclass(frozen=True)
class Signature:
    """How the model is called.

    `inputs` and `outputs` list the leaves of `in_spec`, which is of `(args, kwargs)`, and of
    `out_spec`: `Leaf.VALUE` for the arguments and results of the IR function in order, a constant
    elsewhere. `names` are the parameters of `forward` that the example inputs were bound to.
    """

    names: tuple[str, ...]
    in_spec: TreeSpec
    out_spec: TreeSpec
    inputs: tuple[Any, ...]
    outputs: tuple[Any, ...]


@dataclass
class Imported:
    """A model as IR.

    `weights` holds the tensors that `gq.weight` names: parameters as `nn.Parameter`, buffers and
    constants as plain tensors; storage is shared with the model but for buffers that are written.
    `aliases` gives the other names of tied weights, and `transient` the buffers and constants that
    are not in the model's state dict.
    """

    module: ModuleOp
    weights: dict[str, torch.Tensor]
    signature: Signature | None = None
    aliases: Mapping[str, str] = field(default_factory=dict)
    transient: frozenset[str] = frozenset()


def canonical_names(tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """The one name of each tensor: the first of those that share storage, shape and strides.

    Storages are told apart by identity, so that this holds on the meta device too.
    """
    first: dict[tuple, str] = {}
    return {name: first.setdefault(storage_key(t), name) for name, t in tensors.items()}


def share(tensor: torch.Tensor) -> torch.Tensor:
    """Another object on the same storage: a module that converts one leaves the other as it is."""
    alias = tensor.detach()
    is_parameter = isinstance(tensor, nn.Parameter)
    return nn.Parameter(alias, tensor.requires_grad) if is_parameter else alias


def storage_key(tensor: torch.Tensor) -> tuple:
    """Equal for two tensors exactly if they are the same view of the same storage."""
    storage = tensor.untyped_storage()._cdata
    return storage, tensor.storage_offset(), tensor.dtype, tuple(tensor.shape), tensor.stride()
