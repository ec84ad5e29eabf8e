"""Which parameters of a dense checkpoint are weights of linear layers: the files do not say.

The model's class does, built without weights where transformers has it. Of parameters that it does
not have, and of all where it is not to be had, names decide: a matrix called `weight` is that of a
linear layer unless its module is called like an embedding, a norm or a router (`APART`). Nothing is
left out in silence: each parameter that is none has a reason.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gqc.checkpoints.files import FLOATS, Spec
from gqc.errors import GqcError

if TYPE_CHECKING:
    from torch import nn

APART = re.compile(r"embed|wte|wpe|norm|(^|[._])ln|router|(^|\.)gate$|conv|position", re.IGNORECASE)
"""Modules whose matrices are not those of linear layers, or are best left alone."""

CONV1D = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Model types whose linear layers are Conv1D, with weights [K, N]."""
OF_CONV1D = ("c_attn", "c_proj", "c_fc", "q_attn")


@dataclass(frozen=True)
class Linear:
    """A weight of a linear layer, [N, K], or [K, N] where it is transposed."""

    shape: tuple[int, int]
    transposed: bool = False


Kind = Linear | str
"""A linear layer's weight, or why a parameter is none."""


def kinds(config: Mapping[str, Any], specs: Mapping[str, Spec]) -> dict[str, Kind]:
    """What each parameter is, by its name.

    config: the model's. Warns if its class is not known, and of matrices that it does not have.
    """
    model, why = built(config)
    known = {} if model is None else modules_of(model)
    unknown = []
    result: dict[str, Kind] = {}
    for name, spec in specs.items():
        if (reason := no_matrix(name, spec)) is not None:
            result[name] = reason
        elif (path := name.removesuffix(".weight")) in known:
            result[name] = of_module(known[path], spec)
        else:
            result[name] = of_name(path, spec, config)
            unknown.append(name)
    if unknown:
        reason = why or f"{type(model).__name__} has no module of that name"
        few = f"{', '.join(unknown[:3])}{', …' if len(unknown) > 3 else ''}"
        warnings.warn(f"judged by name alone, for {reason}: {few}", stacklevel=3)
    return result


def built(config: Mapping[str, Any]) -> tuple[nn.Module | None, str]:
    """The model that a config describes, without weights; else None, and why.

    No code but that of the transformers library is run.
    """
    import torch

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
            return kind(said), ""
    except Exception as error:  # whatever the library makes of a config
        return None, f"transformers builds no {name} of this config ({error!r})"


def modules_of(model: nn.Module) -> dict[str, nn.Module]:
    """Modules by path, and by path in the model without its head, as some checkpoints name them."""
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    paths = dict(model.named_modules())
    return {path.removeprefix(prefix): m for path, m in paths.items()} | paths


def no_matrix(name: str, spec: Spec) -> str | None:
    """Why a parameter is no matrix called weight; None for one."""
    if spec.dtype not in FLOATS:
        return f"is of {spec.dtype}, no float"
    if len(spec.shape) != 2:
        return f"has {len(spec.shape)} dimensions, not 2"
    return None if name.rpartition(".")[2] == "weight" else "is not called weight"


def of_module(module: nn.Module, spec: Spec) -> Kind:
    from gqc.frontend.linears import is_conv1d, is_linear

    weight: Any = getattr(module, "weight", None)
    if not is_linear(module):
        return f"is of a {type(module).__name__}, no linear layer"
    if weight is None or tuple(weight.shape) != spec.shape:
        expected = None if weight is None else list(weight.shape)
        raise GqcError(f"{spec.file}: a weight is {spec}, but the config says {expected}")
    return linear(spec, is_conv1d(module))


def of_name(path: str, spec: Spec, config: Mapping[str, Any]) -> Kind:
    if APART.search(path):
        return "is called like an embedding, a norm or a router"
    leaf = path.rpartition(".")[2]
    return linear(spec, config.get("model_type") in CONV1D and leaf in OF_CONV1D)


def linear(spec: Spec, transposed: bool) -> Linear:
    n, k = reversed(spec.shape) if transposed else spec.shape
    return Linear((n, k), transposed)
