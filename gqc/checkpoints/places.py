"""Where the parameters of a model are in a source whose names or shapes are others.

Files may be older than a model of transformers, or have apart each expert's matrices, which it
stacks; a table of transformers' own says how to get from one to the other. Here no weight is
converted: names are looked up, and of a stack one expert's part is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from gqc.checkpoints.weights import Transposed, Weight
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.frontend.experts import BIAS, Experts
from gqc.passes.helpers import count

if TYPE_CHECKING:
    from torch import nn

EXPERT = re.compile(r".*\.(\d+)\.")
"""The last number in a name."""


@dataclass(frozen=True)
class Place:
    """A parameter of a source; or, of one that stacks the rows of `experts`, those of one expert,
    run `part` of `parts` equal ones. transposed: whether a dense stack is [E, K, N], not [E, N, K].
    """

    name: str
    experts: int = 0
    expert: int = 0
    part: int = 0
    parts: int = 1
    transposed: bool = False

    def of(self, weight: Weight) -> Weight:
        """The parameter, of what the source gives by that name.

        Raises GqcError where that is no stack of as many experts, or its blocks cross the parts.
        """
        if not self.experts:
            return weight
        if isinstance(weight, Transposed):
            weight = weight.weight
        elif isinstance(weight, torch.Tensor) and self.transposed and weight.ndim == 3:
            weight = weight.transpose(1, 2)
        if isinstance(weight, torch.Tensor):
            return self.rows(weight)
        if not isinstance(weight, BlockScaled):
            raise GqcError(f"{self.name}: experts cannot be {type(weight).__name__}")
        return self.quantized(weight)

    def quantized(self, stack: BlockScaled) -> BlockScaled:
        """The rows of the expert, of a quantized stack in blocks of one expert."""
        codes = self.rows(stack.codes)
        first, *block = stack.type.block_of(stack.codes.shape)
        if first != 1 or len(codes) % block[0]:
            raise GqcError(
                f"{self.name}: blocks of {stack.type} lie across experts or their layers"
            )
        return replace(
            stack,
            type=stack.type.with_block(block),
            codes=codes,
            scale=self.rows(stack.scale),
            zero=None if stack.zero is None else self.rows(stack.zero),
        )

    def rows(self, stack: torch.Tensor) -> torch.Tensor:
        """The rows of the expert, of [E, N, …]."""
        if stack.ndim < 2 or len(stack) != self.experts or stack.shape[1] % self.parts:
            raise GqcError(
                f"{self.name} is {list(stack.shape)}, expected {self.experts} experts, each with "
                f"{count(self.parts, 'layer')} of one size"
            )
        return stack[self.expert].chunk(self.parts)[self.part]


class Places:
    """Where the parameters are of a model that has its experts apart (`separate_experts`)."""

    def __init__(self, model: nn.Module):
        self.state = frozenset(model.state_dict())
        self.stacks: dict[str, dict[str, Place]] = {}
        """By what a stack is called, the parameters that it is of, and where in it they are."""
        for path, module in model.named_modules():
            if isinstance(module, Experts):
                self.add_stacks(path, module)
        self.renamed = renaming(model, {*self.state, *self.stacks})

    def add_stacks(self, path: str, module: Experts) -> None:
        """Note what is stacked as the model does it, or each layer of all experts by itself."""
        for layer, slot in module.slots.items():
            for e, expert in enumerate(module.paths):
                whole = Place("", len(module.paths), e, transposed=module.transposed)
                part = replace(whole, part=slot.part, parts=slot.parts)
                weight, bias = (f"{path}.{expert}.{layer}.{leaf}" for leaf in ("weight", "bias"))
                self.stacks.setdefault(f"{path}.{layer}", {})[weight] = whole
                self.stacks.setdefault(f"{path}.{slot.stack}", {})[weight] = part
                if bias in self.state:
                    self.stacks.setdefault(f"{path}.{slot.stack}{BIAS}", {})[bias] = part

    def find(self, name: str) -> dict[str, Place]:
        """The parameters of the model that are in one of a source, by their names."""
        if name in self.state:
            return {name: Place(name)}
        renamed, conversion = (name, None) if name in self.stacks else self.renamed(name)
        if renamed in self.state and conversion is None:
            return {renamed: Place(name)}
        found = {p: replace(place, name=name) for p, place in self.stacks.get(renamed, {}).items()}
        if conversion is None:
            return found
        if conversion.steps in MERGES:
            expert = EXPERT.match(name)
            asked = int(expert[1]) if expert else -1, conversion.part, conversion.parts
            matrix = (p for p, at in found.items() if (at.expert, at.part, at.parts) == asked)
            return {parameter: Place(name) for parameter in matrix}
        if conversion.steps == TRANSPOSE:
            return {p: replace(at, transposed=not at.transposed) for p, at in found.items()}
        return {}


@dataclass(frozen=True)
class Conversion:
    """How transformers makes a parameter of those in files: the steps, and which of them one is."""

    steps: tuple[str, ...]
    part: int
    parts: int


MERGES = ("MergeModulelist",), ("MergeModulelist", "Concatenate")
TRANSPOSE = ("Transpose",)
"""Steps that are understood: matrices of experts stacked, or their rows put together first."""

Renaming = Callable[[str], tuple[str, Conversion | None]]


def renaming(model: nn.Module, known: Collection[str]) -> Renaming:
    """What transformers calls parameters that files of a model call otherwise.

    known: names in the model, which tell whether to add or take away that of its base model.
    """
    if not is_of_transformers(model):
        return lambda name: (name, None)
    from transformers import core_model_loading as loading
    from transformers.conversion_mapping import get_model_conversion_mapping

    said: Any = model
    transforms = get_model_conversion_mapping(said)
    renamings = [t for t in transforms if isinstance(t, loading.WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, loading.WeightConverter)]
    state = dict.fromkeys(known, True)

    def renamed(name: str) -> tuple[str, Conversion | None]:
        new, pattern = loading.rename_source_key(
            name, renamings, converters, said.base_model_prefix, state
        )
        converter = next((c for c in converters if pattern in c.source_patterns), None)
        if converter is None or pattern is None:
            return new, None
        steps = tuple(type(step).__name__ for step in converter.operations)
        sources = converter.source_patterns
        return new, Conversion(steps, sources.index(pattern), len(sources))

    return renamed


def is_of_transformers(model: nn.Module) -> bool:
    """Whether a model is one of the library's, which need not be installed."""
    return any(kind.__name__ == "PreTrainedModel" for kind in type(model).__mro__)


def places_of(model: nn.Module, names: Iterable[str]) -> dict[str, dict[str, Place]]:
    """For each name in a source, the parameters of the model that are there."""
    places = Places(model)
    return {name: places.find(name) for name in names}
