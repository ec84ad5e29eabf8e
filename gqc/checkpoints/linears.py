"""Which parameters of a dense checkpoint are weights of linear layers: the files do not say.

The model's class does, built without weights where transformers has it; which of its parameters a
name in files stands for, `gqc.checkpoints.places` says. Of parameters that it does not have, and of
all where it is not to be had, names decide: a matrix called `weight` is that of a linear layer
unless its module is called like an embedding, a norm or a router (`APART`). Nothing is left out in
silence: each parameter that is none has a reason.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gqc.checkpoints.files import FLOATS, Spec
from gqc.checkpoints.places import Place, Places
from gqc.errors import GqcError
from gqc.passes.helpers import count

if TYPE_CHECKING:
    from torch import nn

APART = re.compile(r"embed|wte|wpe|norm|(^|[._])ln|router|(^|\.)gate$|conv|position", re.IGNORECASE)
"""Modules whose matrices are not those of linear layers, or are best left alone."""

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Model types whose linear layers are Conv1D, with weights [K, N]."""
OF_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True)
class Linear:
    """A weight of a linear layer, [N, K], or [K, N] where it is transposed; or a stack of those of
    `experts`, [E, N, K] or [E, K, N].

    layer: the path of the layer in the model; empty where that is not known, or there are several.
    """

    shape: tuple[int, int]
    transposed: bool = False
    experts: int = 0
    layer: str = ""

    @property
    def stacked(self) -> tuple[int, ...]:
        """Shape of all of it, not transposed."""
        return (self.experts, *self.shape) if self.experts else self.shape


Kind = Linear | str
"""A linear layer's weight, or why a parameter is none."""


def kinds(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Kind]:
    """What each parameter is, by its name.

    config: the model's. Warns if its class is not known, and of matrices that it does not have.
    Raises GqcError on a weight of another shape than the class says, and if experts are missing.
    """
    model, why = built(config)
    places = None if model is None else Places(model)
    unknown = []
    result: dict[str, Kind] = {}
    every: set[str] = set()
    for name, spec in specs.items():
        found = {} if places is None else places.find(name)
        every |= found.keys()
        if spec.dtype not in FLOATS:
            result[name] = f"is of {spec.dtype}, no float"
        elif model is not None and found:
            result[name] = of_parameters(model, found, spec)
        elif (reason := no_matrix(name, spec)) is not None:
            result[name] = reason
        else:
            result[name] = of_name(name.removesuffix(".weight"), spec, config)
            unknown.append(name)
    if places is not None:
        refuse_missing(places.experts, every)
    if unknown:
        reason = why or f"{type(model).__name__} has no module of that name"
        few = f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}"
        warnings.warn(f"judged by name alone, for {reason}: {few}", stacklevel=3)
    return result


def built(config: Mapping[str, Any]) -> tuple[nn.Module | None, str]:
    """The model that a config describes, without weights and its experts apart; else None, and why.

    No code but that of the transformers library is run.
    """
    import torch

    from gqc.frontend.experts import separate_experts

    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str):
        return None, "the config names no architecture"
    try:
        import transformers
    except ImportError:
        return None, "transformers is not installed"
    kind = getattr(transformers, name, None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        return None, f"transformers has no model {name!r}"
    try:
        said = transformers.CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
        with torch.device("meta"):
            model = kind(said)
        separate_experts(model)
        return model, ""
    except Exception as error:  # whatever the library makes of a config
        return None, f"transformers builds no {name} of this config ({error!r})"


def no_matrix(name: str, spec: Spec) -> str | None:
    """Why a parameter is no matrix called weight; None for one."""
    if len(spec.shape) != 2:
        return f"has {len(spec.shape)} dimensions, not 2"
    return None if name.rpartition(".")[2] == "weight" else "is not called weight"


def of_parameters(model: nn.Module, found: Mapping[str, Place], spec: Spec) -> Kind:
    """What the parameters of a model are that one in the files has."""
    from gqc.frontend.linears import is_conv1d, is_linear

    name, place = next(iter(found.items()))
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf != "weight" or not is_linear(module):
        return no_matrix(name, spec) or f"is of a {type(module).__name__}, no linear layer"
    if place.stack is not None:
        turned, expected = place.stack.is_turned(spec.shape), place.stack.expected()
        if turned is None:
            raise contradiction(spec, expected)
        return linear(spec, turned, place.stack.experts)
    expected = list(module.get_parameter("weight").shape)
    if list(spec.shape) != expected:
        raise contradiction(spec, expected)
    return replace(linear(spec, is_conv1d(module)), layer=path)


def contradiction(spec: Spec, expected: list[int]) -> GqcError:
    return GqcError(f"{spec.file}: a weight is {spec}, but the config says {expected}")


def refuse_missing(expected: Sequence[str], found: Collection[str]) -> None:
    """Raise GqcError if experts of a model are not all there."""
    if missing := [name for name in expected if name not in found]:
        raise GqcError(
            f"{count(len(missing), 'parameter')} of experts missing, {missing[0]} first: the files "
            "are not whole, or the config is of another model"
        )


def of_name(path: str, spec: Spec, config: Mapping[str, Any]) -> Kind:
    if APART.search(path):
        return "is called like an embedding, a norm or a router"
    leaf = path.rpartition(".")[2]
    return linear(spec, config.get("model_type") in CONV1D and leaf in OF_CONV1D)


def linear(spec: Spec, transposed: bool, experts: int = 0) -> Linear:
    n, k = reversed(spec.shape[-2:]) if transposed else spec.shape[-2:]
    return Linear((n, k), transposed, experts)
