"""Transforms of compressed-tensors: matrices by which inputs or outputs of layers are multiplied.

Those of weights (`weight_input`, `weight_output`) are in the stored weights already. Of those that
run with the model, a Hadamard matrix on the input of a linear layer becomes a rotation; any other
matrix is multiplied into the layer's weight, which is dense then.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from gqc.checkpoints.exceptions import pattern_of
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import Layer
from gqc.checkpoints.weights import Rotated, Weight, dense
from gqc.errors import GqcError
from gqc.formats.rotation import hadamard

HADAMARDS = ("hadamard", "random-hadamard")
"""Kinds whose matrices are of ±1, and are divided by the root of their size."""
KINDS = (*HADAMARDS, "random-matrix")
FOLDED = ("weight_input", "weight_output")
ATTENTION = ("q_attn", "k_cache")
LOCATIONS = (*FOLDED, "input", "output", *ATTENTION)

Matches = Callable[[list[str], str], bool]
"""Whether one of some targets is a layer's name, a pattern that matches it, or its class."""


@dataclass(frozen=True)
class Transform:
    """One matrix at one location of some layers. block: its size; None for all channels."""

    name: str
    kind: str
    block: int | None
    randomized: bool
    location: str
    inverse: bool
    targets: list[str]
    ignore: list[str]

    def place(self, layer: Layer) -> Layer:
        """Where the parts of its matrix are stored for a layer."""
        return Layer(layer.tensors, layer.key(f"{self.name}_{self.location}"))

    def matrix(self, layer: Layer, channels: int) -> torch.Tensor:
        """V [B, B], float64, by which each B channels of the input or output are multiplied.

        Raises GqcError where B does not divide them, and if V is random and not stored.
        """
        size = self.block or channels
        if channels % size:
            raise GqcError(
                f"{layer.name}: transform {self.name!r} has blocks of {size}, which do not divide "
                f"{channels} channels"
            )
        stored = self.place(layer)
        if stored.has("weight"):
            floats = ("F64", "F32", "F16", "BF16")
            matrix = stored.read("weight", floats, (size, size)).double()
        elif self.kind == "hadamard" and size & (size - 1) == 0 and not self.randomized:
            return hadamard(size)
        else:
            raise GqcError(
                f"{layer.name}: transform {self.name!r} ({self.kind}, {self.location}) needs "
                f"{stored.key('weight')}, which is not stored: save the model with its transforms"
            )
        if self.kind not in HADAMARDS:
            return matrix
        if self.randomized:
            if not stored.has("perm"):
                raise GqcError(f"{stored.key('perm')} is missing: save the model with it")
            order = stored.read("perm", ("I64", "I32"), (size,)).long()
            matrix = matrix[order][:, order]
        return (matrix.T if self.inverse else matrix) / size**0.5

    def rotation(self, channels: int) -> int | None:
        """The block of the Hadamard rotation that it is; None where it is none."""
        size = self.block or channels
        plain = self.kind == "hadamard" and not self.randomized and size & (size - 1) == 0
        return size if plain and channels % size == 0 else None


def by_blocks(x: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """x [..., C] with each B channels multiplied by a matrix [B, B]."""
    return (x.unflatten(-1, (-1, len(matrix))) @ matrix).flatten(-2)


@dataclass
class Transforms:
    """The transforms of a checkpoint. Raises GqcError on those that are not known."""

    config: Mapping[str, Any]
    tensors: Tensors
    matches: Matches
    is_embedding: Callable[[str], bool]
    each: list[Transform] = field(init=False)

    def __post_init__(self) -> None:
        self.each = []
        for name, scheme in option(self.config, "config_groups", dict, {}).items():
            if not isinstance(scheme, dict):
                raise GqcError(f"quantization config: transform {name!r} is no object")
            found = transforms_of(name, scheme)
            refuse_attention(name, found)
            self.each += [t for t in found if t.location in ("input", "output")]
        names = "|".join(re.escape(name) for name in option(self.config, "config_groups", dict, {}))
        self.stored = re.compile(rf".*\.({names})_({'|'.join(LOCATIONS)})\.(weight|perm)")

    def of(self, layer: str, *locations: str) -> list[Transform]:
        return [
            t
            for t in self.each
            if t.location in locations
            and self.matches(t.targets, layer)
            and not self.matches(t.ignore, layer)
        ]

    def applied(self, name: str, weight: Weight) -> Weight:
        """A parameter with what runs around its layer: rotated, or dense."""
        path, _, leaf = name.rpartition(".")
        layer = Layer(self.tensors, path)
        if leaf == "bias":
            return self.with_output(layer, weight) if self.of(path, "output") else weight
        inputs, outputs = (self.of(path, where) for where in ("input", "output"))
        if leaf != "weight" or not (inputs or outputs):
            return weight
        if self.is_embedding(path):
            if inputs:
                raise GqcError(f"{path}: transform {inputs[0].name!r} of an embedding's input")
            return self.with_output(layer, weight)
        columns = dense(weight).shape[-1]
        blocks = [t.rotation(columns) for t in inputs]
        if not outputs and len(blocks) == 1 and blocks[0] and not torch.is_tensor(weight):
            return Rotated(weight, blocks[0])  # pyright: ignore[reportArgumentType]
        warnings.warn(
            f"{name} is decoded: {', '.join(f'{t.name} ({t.kind})' for t in (*inputs, *outputs))} "
            "is multiplied into it",
            stacklevel=4,
        )
        values = dense(weight, torch.float64)
        for transform in reversed(inputs):
            values = by_blocks(values, transform.matrix(layer, columns).T)
        return self.with_output(layer, values.T).T.contiguous()  # pyright: ignore

    def with_output(self, layer: Layer, values: Weight) -> torch.Tensor:
        """Values [..., N] with the transforms of the layer's output, float32."""
        result = dense(values, torch.float64)
        for transform in self.of(layer.name, "output"):
            result = by_blocks(result, transform.matrix(layer, result.shape[-1]))
        return result.float()


def transforms_of(name: str, scheme: Mapping[str, Any]) -> list[Transform]:
    """The transforms of one group of the config."""
    kind = option(scheme, "type", str)
    if kind not in KINDS:
        raise GqcError(
            f"quantization config: transform {name!r} is {kind!r}, expected one of "
            f"{', '.join(KINDS)}"
        )
    block = option(scheme, "head_dim", int, 0)
    if not 0 <= block <= 1 << 20:
        raise GqcError(f"quantization config: transform {name!r}: head_dim is {block}")
    result = []
    for each in option(scheme, "apply", list, []):
        if not isinstance(each, dict):
            raise GqcError(f"quantization config: transform {name!r} applies {each!r}")
        location = option(each, "location", str)
        if location not in LOCATIONS:
            raise GqcError(
                f"quantization config: transform {name!r} is at {location!r}, expected one of "
                f"{', '.join(LOCATIONS)}"
            )
        targets, ignore = (names_in(each.get(key)) for key in ("targets", "ignore"))
        randomized = option(scheme, "randomize", bool, False)
        inverse = option(each, "inverse", bool, False)
        result.append(
            Transform(name, kind, block or None, randomized, location, inverse, targets, ignore)
        )
    return result


def names_in(value: Any) -> list[str]:
    """Targets, of which one may stand alone. Raises GqcError on what is none."""
    names = [value] if isinstance(value, str) else value or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise GqcError(f"quantization config: {value!r} is no list of targets")
    for name in names:
        pattern_of(name.removeprefix("re:") if name.startswith("re:") else "")
    return names


def refuse_attention(name: str, transforms: list[Transform]) -> None:
    """Raise GqcError on a transform of queries or keys alone; that of both cancels out."""
    there = {t.location: t for t in transforms if t.location in ATTENTION}
    if not there:
        return
    both = [*there.values()]
    alike = len({(*t.targets, *t.ignore, t.inverse) for t in both}) == 1 and len(both) == 2
    if not alike or both[0].kind not in HADAMARDS:
        raise GqcError(
            f"quantization config: transform {name!r} is at {', '.join(there)}: only an orthogonal "
            "one of queries and keys alike is known, which cancels out; fold it into weights"
        )
    warnings.warn(
        f"transform {name!r} of queries and keys cancels out: it is left out", stacklevel=6
    )
