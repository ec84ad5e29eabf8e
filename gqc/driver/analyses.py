"""What the driver asks of a model and its IR between steps, and what it refuses."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from xdsl.dialects.builtin import ModuleOp
from xdsl.transforms.dead_code_elimination import LiveSet

from gqc.dialects import gq
from gqc.driver.result import ATTACHED
from gqc.errors import GqcError
from gqc.frontend.arguments import is_compiled
from gqc.frontend.signature import Imported
from gqc.passes.helpers import layer_name, matmuls
from gqc.passes.recognize_linears import linear_calls
from gqc.schemes import KEEP, Patterns, parse_scheme


def uses_calibration(schemes: Sequence[str], inputs: Iterable[Any] | None) -> bool:
    """Whether weights are to be quantized under inputs, given or asked for, or transformed."""
    asked = [parse_scheme(scheme) for _, scheme in Patterns(schemes).entries if scheme != KEEP]
    return inputs is not None or any(each.needs_calibration or each.transforms for each in asked)


def dead_layers(module: ModuleOp) -> list[str]:
    """Names of the linear layers whose results nothing reads."""
    live = LiveSet()
    while live.changed:
        live.changed = False
        live.propagate_region_liveness(module.body)
    calls = [*linear_calls(module)]
    living = {layer_name(call) for call in calls if live.is_live(call)}
    return sorted({*map(layer_name, calls)} - living)


def refuse_without_layers(module: ModuleOp) -> None:
    """Raise GqcError if there is nothing to quantize."""
    if not any(matmuls(module)):
        raise GqcError("the model has no linear layer with a stored weight: nothing to compile")


def refuse_unloaded(imported: Imported) -> None:
    """Raise GqcError if there are weights on the meta device."""
    if unloaded := [name for name, weight in imported.weights.items() if weight.is_meta]:
        raise GqcError(
            f"{len(unloaded)} weights are on the meta device, {unloaded[0]} first: load them"
        )


def refuse_uncalibrated(module: ModuleOp, weights: Mapping[str, torch.Tensor]) -> None:
    """Raise GqcError if a static scale was not calibrated."""
    scales = [w.key for w in module.walk() if isinstance(w, gq.WeightOp) and w.key not in weights]
    if scales:
        raise GqcError(
            f"no calibrated {', '.join(scales)}: these layers are called as functions, or were "
            "captured before; give them a scheme whose tensor scale is dynamic"
        )


def refuse_taken_names(layers: nn.Module | None, imported: Imported) -> None:
    """Raise GqcError if what a compiled model has of its own would overwrite a part of the model.

    A copy of a compiled model has those already.
    """
    if layers is None:
        names = {name.split(".")[0] for name in (*imported.weights, *imported.aliases)}
    else:
        names = () if is_compiled(layers) else dir(layers)
    if taken := sorted(set(ATTACHED).intersection(names)):
        raise GqcError(
            f"the model has parts called {', '.join(taken)}, as a compiled model has of its own: "
            "give them other names"
        )
