"""What readers of safetensors share: layers whose weights are stored in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch

from gqc.checkpoints.files import FLOATS, Spec, Tensors
from gqc.errors import GqcError

if TYPE_CHECKING:
    from gqc.checkpoints.weights import Weight
    from gqc.schemes import Scheme

SCALES = ("F16", "BF16", "F32")
"""Formats that scales are stored as."""


@dataclass(frozen=True)
class Layer:
    """A linear layer of a checkpoint; its parts are the tensors `<name>.<part>`."""

    tensors: Tensors
    name: str

    def key(self, part: str) -> str:
        return f"{self.name}.{part}" if self.name else part

    def has(self, part: str) -> bool:
        return self.key(part) in self.tensors.specs

    def error(self, part: str, text: str) -> GqcError:
        return self.tensors.error(self.key(part), text)

    def spec(self, part: str, rank: int | None = None) -> Spec:
        """Raises GqcError if a part is absent, empty, or of another rank."""
        if not self.has(part):
            raise self.error(part, f"is missing, though {self.name} is quantized")
        spec = self.tensors.specs[self.key(part)]
        if rank is not None and len(spec.shape) != rank:
            raise self.error(part, f"is {spec}, expected {rank} dimensions")
        if 0 in spec.shape:
            raise self.error(part, f"is {spec}: it is empty")
        return spec

    def read(
        self, part: str, dtypes: Sequence[str], *shapes: Sequence[int], bits: bool = False
    ) -> torch.Tensor:
        """A part of one of these formats, in one of these shapes; `bits` if it may hold NaN.

        Raises GqcError on another.
        """
        spec = self.spec(part)
        if spec.dtype not in dtypes or spec.shape not in [tuple(shape) for shape in shapes]:
            wanted = " or ".join(str(list(shape)) for shape in shapes)
            raise self.error(part, f"is {spec}, expected {' or '.join(dtypes)} {wanted}")
        return self.tensors.read(self.key(part), bits)

    def number(self, part: str) -> torch.Tensor:
        """A float32 scalar, positive and normal. Raises GqcError on anything else."""
        value = self.read(part, SCALES, (), (1,)).float().reshape(())
        if not value >= torch.finfo(torch.float32).tiny:
            raise self.error(part, f"is {value.item()}, expected a positive number")
        return value

    def calibrated(self, part: str) -> torch.Tensor | None:
        """The scale of the layer's input, a float32 scalar; None without one.

        None too of an input that calibration did not see, as of an expert that no token went to:
        it is 0, inf or NaN. Raises GqcError on another shape and on negative numbers.
        """
        if not self.has(part):
            return None
        value = self.read(part, SCALES, (), (1,), bits=True).float().reshape(())
        if value < 0:
            raise self.error(part, f"is {value.item()}, expected a positive number")
        seen = torch.finfo(torch.float32).tiny <= value < torch.inf
        return value if seen else None

    def is_static(self, part: str) -> bool:
        """Whether the scale of the layer's input is a calibrated one. Warns where it should be."""
        seen = self.calibrated(part) is not None
        if self.has(part) and not seen:
            warnings.warn(
                f"{self.key(part)} is no positive number, as of an expert that no token of "
                "calibration went to: the input is quantized by a dynamic scale",
                stacklevel=3,
            )
        return seen

    def built(self, part: str, build: Callable[[], Any]) -> Any:
        """What `build` returns, its GqcError being one about a part of this layer."""
        try:
            return build()
        except GqcError as error:
            raise self.error(part, f"cannot be: {error}") from error


TRANSPOSED = ("gpt_oss", "llama4", "llama4_text")
"""Types of models whose experts' weights are [E, K, N]."""


def are_transposed(config: Mapping[str, Any]) -> bool:
    """Whether a model, or the language model in it, has experts' weights [E, K, N]."""
    configs = (config, *(value for value in config.values() if isinstance(value, dict)))
    return any(each.get("model_type") in TRANSPOSED for each in configs)


@dataclass(frozen=True)
class Stack(Layer):
    """Weights [E, N, K] of as many experts, or [E, K, N] where the model has them so; parts are
    stored in the same order, with `weight_` at the beginning of their names or without.
    """

    transposed: bool = False

    def key(self, part: str) -> str:
        if part == "weight":
            return self.name
        whole, short = f"{self.name}_{part}", f"{self.name}_{part.removeprefix('weight_')}"
        return short if whole not in self.tensors.specs and short in self.tensors.specs else whole

    def matrices(self, part: str, dtypes: Sequence[str]) -> torch.Tensor:
        """A part [E, rows, columns], not transposed."""
        stored = self.read(part, dtypes, self.spec(part, 3).shape)
        return stored.transpose(1, 2).contiguous() if self.transposed else stored


def warn_of_inputs(form: str) -> None:
    """Tell that gqc does not quantize inputs as a checkpoint says."""
    warnings.warn(
        f"inputs that the checkpoint quantizes to {form} are left as they are", stacklevel=3
    )


class Reader:
    """Parameters of a checkpoint by their names in the dense model.

    Subclasses name the parts of a quantized weight in `PARTS`, among them those that a layer may do
    without, and make a weight of them in `weight`. Any of `KEYS` tells that a layer is quantized,
    any part where it is empty. `HIDDEN` are the last parts of names of tensors that are no
    parameters of the dense model. `STACKS` says whether quantized weights of experts may be in one
    parameter. `Reader` itself reads a checkpoint of dense tensors.
    """

    PARTS: ClassVar[frozenset[str]] = frozenset()
    KEYS: ClassVar[frozenset[str]] = frozenset()
    HIDDEN: ClassVar[frozenset[str]] = frozenset()
    STACKS: ClassVar[bool] = False

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        self.tensors, self.quantization, self.config = tensors, quantization, config

    def weight(self, layer: Layer) -> Weight:
        """The weight of a quantized layer. Raises GqcError where its parts contradict."""
        raise NotImplementedError

    def origin(self, name: str) -> str:
        """What quantized the weight of that name; empty where the format does not say."""
        return ""

    def activation(self, name: str) -> Scheme | None:
        """How the input of the layer of a weight is quantized, None where it is not."""
        return None

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The tensor scale, a float32 scalar, of an activation whose scheme is static."""
        return None

    def names(self) -> list[str]:
        """Names of the parameters, in the order of the files."""
        names: dict[str, None] = {}
        for stored in self.tensors.specs:
            module, _, leaf = stored.rpartition(".")
            weight = Layer(self.tensors, module).key("weight")
            if leaf in self.PARTS and self.quantized(weight):
                names[weight] = None
            elif leaf not in self.HIDDEN and not self.is_of_stack(stored):
                names[stored] = None
        return list(names)

    def is_of_stack(self, stored: str) -> bool:
        """Whether a tensor is a part of quantized weights of experts."""
        ends = {end for part in self.PARTS for end in (part, part.removeprefix("weight_"))}
        names = (stored.removesuffix(f"_{end}") for end in ends if stored.endswith(f"_{end}"))
        return self.STACKS and any(self.stack(name) is not None for name in names)

    def stack(self, name: str) -> Layer | None:
        """The quantized weights of experts that are in one parameter; None of another."""
        spec = self.tensors.specs.get(name)
        if not self.STACKS or spec is None or len(spec.shape) != 3:
            return None
        stack = Stack(self.tensors, name, are_transposed(self.config))
        return stack if any(stack.has(part) for part in self.KEYS or self.PARTS) else None

    def quantized(self, name: str) -> Layer | None:
        """The quantized layer whose weight a name is, None if it is of none."""
        module, _, leaf = name.rpartition(".")
        layer = Layer(self.tensors, module)
        keys = self.KEYS or self.PARTS
        if leaf == "weight" and any(layer.has(part) for part in keys):
            return layer
        return self.stack(name)

    def read(self, name: str) -> Weight:
        """A parameter. Raises GqcError on unknown names and damaged tensors."""
        layer = self.quantized(name)
        if layer is not None:
            return self.weight(layer)
        spec = self.tensors.specs.get(name)
        if spec is None or name.rpartition(".")[2] in self.HIDDEN:
            raise GqcError(f"no parameter is called {name!r}: names() has those that are")
        if spec.dtype not in FLOATS and name.endswith((".weight", ".bias")):
            raise self.tensors.error(
                name, f"is {spec} without scales, expected {' or '.join(FLOATS)}"
            )
        return self.tensors.read(name)
