"""Experts of transformers' models as linear layers, which gqc compiles as it does any others.

Transformers stacks the matrices of all experts of a layer in parameters of three dimensions, and
indexes these by expert. Here each expert has linear layers of its own, on the same storage, called
as most checkpoints call them: `….experts.7.down_proj`.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

GATE_UP, GATE, UP, DOWN = "gate_up_proj", "gate_proj", "up_proj", "down_proj"
BIAS = "_bias"


@dataclass(frozen=True)
class Slot:
    """Where a linear layer of each expert lies: run `part` of `parts` equal ones of a stack's N."""

    stack: str
    part: int = 0
    parts: int = 1


Slots = dict[str, Slot]
"""Linear layers of an expert by their names."""

SEPARATE: Slots = {GATE: Slot(GATE_UP, 0, 2), UP: Slot(GATE_UP, 1, 2), DOWN: Slot(DOWN)}
INTERLEAVED: Slots = {GATE_UP: Slot(GATE_UP), DOWN: Slot(DOWN)}
UNGATED: Slots = {UP: Slot(UP), DOWN: Slot(DOWN)}

PLAIN_GATE = "_default_apply_gate"
"""What transformers calls act(gate) · up; by another name it would be taken for a gate of its own,
which is called as well."""

TRAITS = ("has_gate", "has_bias", "is_concatenated", "is_transposed", "num_experts")
"""What `use_experts_implementation` of transformers says of a module that stacks experts."""


def slots_of(module: nn.Module) -> Slots | None:
    """Where the linear layers of stacked experts lie; None of another module, and of one that does
    or holds more."""
    said: Any = module
    if not all(hasattr(module, trait) for trait in TRAITS) or does_more(said):
        return None
    gated = SEPARATE if said.is_concatenated else INTERLEAVED
    slots = gated if said.has_gate else UNGATED
    stacks = {slot.stack: 3 for slot in slots.values()}
    biases = {name + BIAS: 2 for name in stacks} if said.has_bias else {}
    tensors = (*module.named_parameters(), *module.named_buffers())
    return slots if {name: t.ndim for name, t in tensors} == stacks | biases else None


def does_more(experts: Any) -> bool:
    """Whether stacked experts do anything besides what `Experts` does."""
    hooked = experts._forward_hooks or experts._forward_pre_hooks or "forward" in vars(experts)
    own = not hasattr(type(experts).forward, "__wrapped__")  # transformers' is, for its backends
    return bool(hooked or own or getattr(experts, "has_post_expert_norm", False))


class Experts(nn.Module):
    """The experts of one layer, each a `ModuleDict` of linear layers under its number.

    Called as the stacked ones are: rows x [S, H], the experts [S, top_k] that each is sent to,
    int64, and their weights [S, top_k]; gives [S, H], summed in float32. An expert runs on the rows
    that are sent to it, and not at all where there are none; in a captured graph each runs, perhaps
    on no row.
    """

    def __init__(self, stacked: Any, slots: Slots):
        super().__init__()
        self.slots, self.transposed = slots, bool(stacked.is_transposed)
        self.stacked = (without_parameters(stacked),)  # no submodule
        self.paths = [str(e) for e in range(stacked.num_experts)]
        for e, path in enumerate(self.paths):
            layers = {name: linear(stacked, slot, e) for name, slot in slots.items()}
            self.add_module(path, nn.ModuleDict(layers))

    def forward(self, x: torch.Tensor, index: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(x, dtype=torch.float32)
        for e in self.asked(index):
            row, choice = torch.where(index == e)
            found = self.run(self.get_submodule(self.paths[e]), x[row])
            result.index_add_(0, row, found.float() * weight[row, choice, None].float())
        return result.to(x.dtype)

    def asked(self, index: torch.Tensor) -> Sequence[int]:
        """Experts that rows are sent to; all of them where a graph is captured."""
        every = range(len(self.paths))
        if torch.compiler.is_compiling():
            return every
        return [e for e in index.unique().tolist() if e in every]  # others stand for none

    def run(self, expert: Any, x: torch.Tensor) -> torch.Tensor:
        """What one expert makes of rows, before its weight."""
        does: Any = self.stacked[0]
        if GATE_UP in self.slots:
            inner = does._apply_gate(expert[GATE_UP](x))
        elif GATE not in self.slots:
            inner = does.act_fn(expert[UP](x))
        elif type(does)._apply_gate.__name__ == PLAIN_GATE:
            inner = does.act_fn(expert[GATE](x)) * expert[UP](x)
        else:
            inner = does._apply_gate(torch.cat([expert[GATE](x), expert[UP](x)], -1))
        return expert[DOWN](inner)


def without_parameters(module: nn.Module) -> nn.Module:
    """A module with the attributes and submodules of another, and no parameters of its own."""
    shell = copy.copy(module)
    shell._parameters = {}
    return shell


def linear(stacked: Any, slot: Slot, expert: int) -> nn.Linear:
    """The linear layer of an expert, on the storage of the stacked parameters."""
    weight = stacked.get_parameter(slot.stack).detach()[expert]  # [N, K], or [K, N]
    weight = (weight.t() if stacked.is_transposed else weight).chunk(slot.parts)[slot.part]
    n, k = weight.shape
    layer = nn.Linear(k, n, bias=stacked.has_bias, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    if stacked.has_bias:
        bias = stacked.get_parameter(slot.stack + BIAS).detach()[expert]
        layer.bias = nn.Parameter(bias.chunk(slot.parts)[slot.part], requires_grad=False)
    return layer


def separate_experts(model: nn.Module) -> None:
    """Put linear layers in the place of stacked experts, everywhere in a model."""
    new: dict[nn.Module, Experts] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is not None and (slots := slots_of(child)) is not None:
                parent._modules[name] = new.setdefault(child, Experts(child, slots))
