"""Checks of what a user gives, before any work: each error says what to give instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree
from xdsl.dialects.builtin import ModuleOp

from gqc.errors import GqcError
from gqc.frontend.capture import Inputs, split_inputs
from gqc.frontend.graph_modules import GroupedQuantModule
from gqc.frontend.linears import is_conv1d

SOURCE = ("names", "read", "origin", "activation")
"""Methods that every source of weights has."""


def refuse_model(model: nn.Module) -> None:
    """Raise GqcError on a model that is compiled already, or whose shapes are not known yet."""
    compiled = isinstance(model, GroupedQuantModule)
    if is_compiled(model):
        compiled = compiled or not any(map(is_dense_linear, model.modules()))
    if compiled:
        raise GqcError(
            f"{type(model).__name__} is compiled already: give the model that it was compiled from"
        )
    lazy = [name for name, p in model.named_parameters() if is_lazy(p)]
    if lazy:
        raise GqcError(
            f"{lazy[0]} has no shape yet, as lazy modules have not before they are called: run the "
            "model on an input first"
        )


def is_compiled(model: nn.Module) -> bool:
    """Whether a model is what `gqc.compile` gave, or a copy of it."""
    return isinstance(getattr(vars(model).get("compilation"), "result", None), ModuleOp)


def is_dense_linear(module: nn.Module) -> bool:
    is_linear = isinstance(module, nn.Linear) or is_conv1d(module)
    return is_linear and not isinstance(module, GroupedQuantModule)


def refuse_weights(weights: Any) -> None:
    """Raise GqcError on what is no source of weights."""
    if all(hasattr(weights, name) for name in SOURCE):
        return
    if isinstance(weights, str | Path):
        remedy = (
            f"give gqc.checkpoints.open_checkpoint({str(weights)!r}), or call "
            f"gqc.load({str(weights)!r})"
        )
    elif isinstance(weights, Mapping):
        remedy = "load a state dict into the model by model.load_state_dict, and give no weights"
    else:
        remedy = "give a checkpoint (gqc.checkpoints.open_checkpoint) or what gqc.quantize gave"
    raise GqcError(f"weights is a {type(weights).__name__}: {remedy}")


def calibration_inputs(calibration: Any) -> list[Inputs]:
    """The inputs of a model that calibration gives, each positional and by keyword.

    Raises GqcError on what is one input, and not several, and on inputs without any tensor.
    """
    single = isinstance(calibration, torch.Tensor | Mapping | str | bytes | Path | nn.Module)
    if single or not isinstance(calibration, Iterable):
        raise GqcError(
            f"calibration is a {type(calibration).__name__}: give inputs of the model in a list, "
            "[inputs], or in another iterable, each as example_inputs are"
        )
    inputs: list[Inputs] = []
    for i, example in enumerate(calibration):
        leaves = pytree.tree_leaves(split_inputs(example))
        if not any(isinstance(leaf, torch.Tensor) for leaf in leaves):
            raise GqcError(
                f"calibration input {i} is a {type(example).__name__} without a tensor: give what "
                "the model is called with, as a tokenizer makes of text"
            )
        inputs.append(split_inputs(example))
    return inputs
