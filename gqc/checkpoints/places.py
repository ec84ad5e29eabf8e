"""Where the parameters of a model are in a source whose names or shapes are others.

Files may be older than a model of transformers, or have apart each expert's matrices, which it
stacks; a table of transformers' own says how to get from one to the other. Here no weight is
converted: names are looked up, and of a stack one expert's part is read.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from gqc.checkpoints.weights import Transposed, Weight
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.frontend.attention import PROJECTIONS, Attention
from gqc.frontend.experts import BIAS, Experts

if TYPE_CHECKING:
    from torch import nn

EXPERT = re.compile(r".*\.(\d+)\.")
"""The last number between dots."""


@dataclass(frozen=True)
class Stack:
    """Matrices [rows, K] of as many experts, or their biases [rows], in one parameter.

    experts: 0 where there is one matrix [rows, K], of several layers. transposed: whether it is
    [E, K, rows] where it is dense. either: whether it may be so, as its shape tells.
    """

    experts: int
    shape: tuple[int, ...]
    transposed: bool = False
    either: bool = False

    def is_turned(self, shape: Sequence[int]) -> bool | None:
        """Whether a dense stack of this shape is transposed; None of one that is no such stack."""
        known = (self.transposed, not self.transposed) if self.either else (self.transposed,)
        return next((turned for turned in known if list(shape) == self.dense(turned)), None)

    def expected(self) -> list[int]:
        """The shape that a dense stack has."""
        return self.dense(self.transposed)

    def dense(self, turned: bool) -> list[int]:
        matrix = reversed(self.shape) if turned else self.shape
        return [self.experts, *matrix] if self.experts else [*matrix]


@dataclass(frozen=True)
class Place:
    """A parameter of a source; or, of a stack there, run `part` of `parts` equal ones of the rows
    of one expert."""

    name: str
    stack: Stack | None = None
    expert: int = 0
    part: int = 0
    parts: int = 1

    def of(self, weight: Weight) -> Weight:
        """The parameter, of what the source gives by that name.

        Raises GqcError where that is no such stack, or its blocks cross the parts.
        """
        if self.stack is None:
            return weight
        if isinstance(weight, torch.Tensor):
            turned = self.stack.is_turned(weight.shape)
            if turned is None:
                raise self.error(list(weight.shape), self.stack.expected())
            return self.rows(weight.transpose(1, 2) if turned else weight)
        if isinstance(weight, Transposed):
            weight = weight.weight
        if not isinstance(weight, BlockScaled):
            raise GqcError(f"{self.name}: experts cannot be {type(weight).__name__}")
        return self.quantized(weight, self.stack)

    def quantized(self, weight: BlockScaled, stack: Stack) -> BlockScaled:
        """The rows of the expert, of a quantized stack in blocks of one expert."""
        shape, expected = list(weight.codes.shape), stack.dense(False)
        if shape != expected:
            raise self.error(shape, expected)
        codes = self.rows(weight.codes)
        block = list(weight.type.block_of(shape))
        first = block.pop(0) if stack.experts else 1
        if first != 1 or len(codes) % block[0]:
            raise GqcError(f"{self.name}: {weight.type} has blocks across experts or layers")
        return replace(
            weight,
            type=weight.type.with_block(block),
            codes=codes,
            scale=self.rows(weight.scale),
            zero=None if weight.zero is None else self.rows(weight.zero),
        )

    def error(self, shape: list[int], expected: list[int]) -> GqcError:
        experts = 0 if self.stack is None else self.stack.experts
        what = f"a stack of {experts} experts" if experts else "several layers in one"
        return GqcError(
            f"{self.name} is {shape}, expected {expected}, {what}: the config is of another model, "
            "or the file is damaged"
        )

    def rows(self, stack: torch.Tensor) -> torch.Tensor:
        """The rows of the layer, of [E, rows, …] or [rows, …]."""
        is_stack = self.stack is None or self.stack.experts
        return (stack[self.expert] if is_stack else stack).chunk(self.parts)[self.part]


Part = tuple[int, int, int]
"""Number of an expert, of a part of its rows, and of the parts."""


class Places:
    """Where the parameters are of a model that has its experts apart (`separate_experts`)."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.state = frozenset(model.state_dict())
        self.stacks: dict[str, tuple[Stack, dict[Part, str]]] = {}
        """By what a stack is called, what it is, and the parameters that are in it."""
        for path, module in model.named_modules():
            if isinstance(module, Experts):
                self.add_stacks(path, module)
            if isinstance(module, Attention):
                self.add_packed(f"{path}.".lstrip("."), module)
        self.renamed = renaming(model, {*self.state, *self.stacks})

    def add_stacks(self, path: str, module: Experts) -> None:
        """Note what is stacked as the model does it, or each layer of all experts by itself."""
        for layer, slot in module.slots.items():
            for e, expert in enumerate(module.paths):
                name = f"{path}.{expert}.{layer}"
                n, k = module.get_parameter(f"{expert}.{layer}.weight").shape
                whole = Stack(len(module.paths), (n, k), module.transposed)
                stack = replace(whole, shape=(n * slot.parts, k))
                part = e, slot.part, slot.parts
                self.add(f"{path}.{layer}", whole, (e, 0, 1), f"{name}.weight")
                self.add(f"{path}.{slot.stack}", stack, part, f"{name}.weight")
                if f"{name}.bias" in self.state:
                    bias = Stack(len(module.paths), (n * slot.parts,))
                    self.add(f"{path}.{slot.stack}{BIAS}", bias, part, f"{name}.bias")

    def add_packed(self, path: str, module: Attention) -> None:
        """Note how torch calls the weights and biases of query, key and value."""
        n = module.embed_dim
        for i, name in enumerate(PROJECTIONS):
            k = module.get_submodule(name).get_parameter("weight").shape[1]
            weight, bias, part = f"{path}{name}.weight", f"{path}{name}.bias", (0, i, 3)
            if module._qkv_same_embed_dim:
                self.add(f"{path}in_proj_weight", Stack(0, (3 * n, k)), part, weight)
            else:
                self.add(f"{path}{name}_weight", Stack(0, (n, k)), (0, 0, 1), weight)
            if bias in self.state:
                self.add(f"{path}in_proj_bias", Stack(0, (3 * n,)), part, bias)

    def add(self, name: str, stack: Stack, part: Part, parameter: str) -> None:
        self.stacks.setdefault(name, (stack, {}))[1][part] = parameter

    def find(self, name: str) -> dict[str, Place]:
        """The parameters of the model that are in one of a source, by their names."""
        if name in self.state:
            return {name: Place(name)}
        renamed, conversion = self.renamed(name)
        if conversion is None:
            renamed = name if name in self.stacks else renamed
            return {renamed: Place(name)} if renamed in self.state else self.split(renamed, name)
        if conversion.steps in MERGES:
            return self.matrix(renamed, name, conversion)
        return self.split(renamed, name, either=True) if conversion.steps == TRANSPOSE else {}

    def split(self, stack: str, name: str, either: bool = False) -> dict[str, Place]:
        """The parameters that are in a stack, which the source has by a name."""
        if stack not in self.stacks:
            return {}
        known, parts = self.stacks[stack]
        known = replace(known, either=either)
        return {parameter: Place(name, known, *part) for part, parameter in parts.items()}

    def matrix(self, stack: str, name: str, conversion: Conversion) -> dict[str, Place]:
        """The parameter that one matrix of an expert is, of those that would be stacked."""
        number = EXPERT.match(name)
        if stack not in self.stacks or number is None:
            return {}
        part = int(number[1]), conversion.part, conversion.parts
        parameter = self.stacks[stack][1].get(part)
        return {} if parameter is None else {parameter: Place(name)}

    @property
    def experts(self) -> list[str]:
        """All parameters of experts."""
        parts = (name for _, parts in self.stacks.values() for name in parts.values())
        return [*dict.fromkeys(parts)]


@dataclass(frozen=True)
class Conversion:
    """How transformers makes a parameter of those in files: the steps, and which of them one is."""

    steps: tuple[str, ...]
    part: int
    parts: int


MERGES = ("MergeModulelist",), ("MergeModulelist", "Concatenate")
"""Steps that are understood: matrices of experts are stacked, and these put together by rows."""
TRANSPOSE = ("Transpose",)
"""A stack is turned, if it needs to be."""

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
