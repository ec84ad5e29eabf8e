"""compressed-tensors, as LLM Compressor writes it and vLLM reads it.

Integers are stored with 2^(b−1) added, and so are their zero points; `(q − z) · s`. The global
scales of NVFP4 are divisors, `code · scale / global`: the tensor scale here is 1 / global, in
float32, as vLLM has it too.
"""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from gqc.checkpoints import microscaled
from gqc.checkpoints.awq import SCALES, group_size
from gqc.checkpoints.bits import unpack, words_of
from gqc.checkpoints.exceptions import pattern_of
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.gptq import group_order
from gqc.checkpoints.linears import APART, built
from gqc.checkpoints.places import Places
from gqc.checkpoints.reader import Layer, Reader, warn_of_inputs
from gqc.checkpoints.transforms import Transforms
from gqc.checkpoints.weights import Permuted, Weight, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled, repeated
from gqc.schemes import NVFP4, Scheme
from gqc.schemes import mx as mx_scheme

Block = tuple[int | None, int | None]


@dataclass(frozen=True)
class Weights:
    """How the config says that weights are quantized: `weights` of one of its groups."""

    kind: str
    bits: int
    symmetric: bool
    strategy: str
    group: int | None
    block: tuple[int, int] | None

    @staticmethod
    def of(config: dict[str, Any]) -> Weights:
        kind = option(config, "type", str, "int")
        bits = option(config, "num_bits", int, 8)
        group = group_size(config) if config.get("group_size") is not None else None
        strategy = option(config, "strategy", str, "group" if group else "tensor")
        block = config.get("block_structure") or []
        if isinstance(block, str):  # as older versions write it: 128x128
            block = [int(extent) if extent.isdecimal() else 0 for extent in block.split("x")]
        if kind not in ("int", "float") or not 1 <= bits <= 8:
            raise GqcError(f"quantization config: weights of {bits} bits, type {kind!r}")
        if strategy in ("group", "tensor_group") and group is None:
            raise GqcError(f"quantization config: strategy {strategy!r} needs a group_size")
        if strategy == "block" and not (
            isinstance(block, list)
            and len(block) == 2
            and all(type(extent) is int and extent > 0 for extent in block)
        ):
            raise GqcError(f"quantization config: block_structure is {block!r}, expected [A, B]")
        symmetric = option(config, "symmetric", bool, True)
        return Weights(kind, bits, symmetric, strategy, group, tuple(block) or None)  # pyright: ignore[reportArgumentType]


def shared(
    layer: Layer, weights: Weights, part: str, dtypes: tuple[str, ...], n: int, k: int
) -> tuple[torch.Tensor, Block]:
    """Scales of a weight [N, K], or zero points stored like them, and the block that shares one."""
    match weights.strategy:
        case "tensor":
            return layer.read(part, dtypes, (1,), (), (1, 1)).reshape(1, 1), (None, None)
        case "channel":
            return layer.read(part, dtypes, (n, 1), (n,)).reshape(n, 1), (1, None)
        case "group" | "tensor_group":
            group = weights.group
            assert group is not None
            if k % group:
                raise layer.error(part, f"has groups of {group}, which do not divide K = {k}")
            return layer.read(part, dtypes, (n, k // group)), (1, group)
        case "block":
            assert weights.block is not None
            return finer(layer, part, dtypes, weights.block, (n, k))
    raise layer.error(part, f"has the strategy {weights.strategy!r}, which is not of weights")


def finer(
    layer: Layer, part: str, dtypes: tuple[str, ...], block: tuple[int, int], shape: tuple[int, int]
) -> tuple[torch.Tensor, Block]:
    """Scales of blocks A×B, [⌈N/A⌉, ⌈K/B⌉] or [⌈N/A⌉, 1, ⌈K/B⌉, 1], repeated for smaller ones where
    blocks at the edges are cut off."""
    a, b = (-(-n // b) for n, b in zip(shape, block, strict=True))
    scale = layer.read(part, dtypes, (a, b), (a, 1, b, 1)).reshape(a, b)
    sizes = math.gcd(shape[0], block[0]), math.gcd(shape[1], block[1])
    for dim in (0, 1):
        scale = repeated(scale, block[dim] // sizes[dim], dim)
        scale = scale.narrow(dim, 0, shape[dim] // sizes[dim])
    return scale.contiguous(), sizes


def pack_quantized(layer: Layer, weights: Weights) -> BlockScaled | Permuted:
    """weight_packed i32 [N, ceil(K·b/32)], weight_shape [2]; zero points packed along N."""
    n, width = layer.spec("weight_packed", 2).shape
    bits = weights.bits
    shape = tuple(layer.read("weight_shape", ["I64", "I32"], (2,)).tolist())
    if shape[0] != n or shape[1] < 1 or words_of(shape[1], bits) != width:
        raise layer.error("weight_shape", f"is {list(shape)}, for {n}×{width} words of {bits} bits")
    k = shape[1]
    scale, block = shared(layer, weights, "weight_scale", SCALES, n, k)
    codes = unpack(layer.read("weight_packed", ["I32"], (n, width)), bits, k)
    zero = None
    if not weights.symmetric:
        rows, blocks = scale.shape
        words = layer.read("weight_zero_point", ["I32"], (words_of(rows, bits), blocks))
        zero = unpack(words.T.contiguous(), bits, rows).T.contiguous()
    order = None
    if layer.has("weight_g_idx"):
        groups = layer.read("weight_g_idx", ["I32", "I64"], (k,)).long()
        order = group_order(layer, "weight_g_idx", groups, k // scale.shape[1])
    codes = codes if order is None else codes[:, order]
    weight = integers(codes, scale, zero, bits, block)
    return weight if order is None else Permuted(weight, order)


def integers(
    codes: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, bits: int, block: Block
) -> BlockScaled:
    """A weight of codes, and zero points, with 2^(b−1) added; signed without zero points."""
    if zero is not None:
        return block_scaled(f"ui{bits}", block, codes.contiguous(), scale, zero, "quantized")
    signed = (codes - (1 << bits - 1)).view(torch.int8)
    return block_scaled(f"si{bits}", block, signed, scale)


def unpacked(layer: Layer, weights: Weights) -> BlockScaled:
    """weight i8 or e4m3 [N, K], one code a byte; zero points i8 in the shape of the scales."""
    n, k = layer.spec("weight", 2).shape
    scale, block = shared(layer, weights, "weight_scale", SCALES, n, k)
    if weights.kind == "float":
        codes = layer.read("weight", ["F8_E4M3"], (n, k)).view(torch.uint8)
        return block_scaled("f8E4M3FN", block, codes, scale)
    codes = lifted(layer, "weight", layer.read("weight", ["I8"], (n, k)), weights.bits)
    zero = None
    if not weights.symmetric:
        stored, _ = shared(layer, weights, "weight_zero_point", ("I8",), n, k)
        zero = lifted(layer, "weight_zero_point", stored, weights.bits)
    return integers(codes, scale, zero, weights.bits, block)


def lifted(layer: Layer, part: str, codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes, int8, with 2^(b−1) added, uint8. Raises GqcError on those of more bits."""
    half = 1 << bits - 1
    if int(codes.min()) < -half or int(codes.max()) >= half:
        raise layer.error(part, f"holds numbers of more than {bits} bits")
    return codes.view(torch.uint8) + half


def nvfp4(layer: Layer, weights: Weights) -> BlockScaled:
    factor = layer.number("weight_global_scale").reciprocal()
    return microscaled.nvfp4(layer, "weight_packed", "weight_scale", factor)


def mx(codes: str, element: str) -> Callable[[Layer, Weights], BlockScaled]:
    return lambda layer, weights: microscaled.mx(layer, codes, "weight_scale", element)


@dataclass(frozen=True)
class Layout:
    """One row: what reads a weight, of which kinds, bits and groups (None: any)."""

    read: Callable[[Layer, Weights], BlockScaled | Permuted]
    kinds: tuple[str, ...]
    bits: int | None = None
    group: int | None = None

    def takes(self, weights: Weights) -> bool:
        return (
            weights.kind in self.kinds
            and self.bits in (None, weights.bits)
            and self.group in (None, weights.group)
            and (weights.kind == "int" or weights.symmetric)
        )


LAYOUTS: dict[str, Layout] = {
    "pack-quantized": Layout(pack_quantized, ("int",)),
    "int-quantized": Layout(unpacked, ("int",)),
    "float-quantized": Layout(unpacked, ("float",), 8),
    "naive-quantized": Layout(unpacked, ("int", "float")),
    "nvfp4-pack-quantized": Layout(nvfp4, ("float",), 4, 16),
    "mxfp4-pack-quantized": Layout(mx("weight_packed", "f4E2M1FN"), ("float",), 4, 32),
    "mxfp6-pack-quantized": Layout(mx("weight_packed", "f6E2M3FN"), ("float",), 6, 32),
    "mxfp8-quantized": Layout(mx("weight", "f8E4M3FN"), ("float",), 8, 32),
}
"""Layouts by `format` of the config."""

ACTIVATIONS: dict[tuple[str, int, int], Scheme] = {
    ("float", 4, 16): NVFP4,
    ("float", 4, 32): mx_scheme("f4E2M1FN", "even"),
    ("float", 6, 32): mx_scheme("f6E2M3FN", "even"),
    ("float", 8, 32): mx_scheme("f8E4M3FN", "rceil"),
}
"""Schemes of inputs by type, bits and group, their scales rounded as this library does."""


@dataclass(frozen=True)
class Group:
    """One of the config's groups: the layers it is for, and what is said of them."""

    targets: tuple[str, ...]
    layout: Layout
    weights: Weights
    inputs: dict[str, Any]
    outputs: bool = False

    def is_for(self, layer: str) -> bool:
        """Whether a target is a layer's name, or a pattern that matches it."""
        return is_named(self.targets, layer)


def is_named(targets: Iterable[str], layer: str) -> bool:
    """Whether a target is a layer's name, or a pattern that matches it."""
    return any(
        re.match(target[3:], layer) if target.startswith("re:") else target == layer
        for target in targets
    )


def check_targets(targets: Iterable[Any]) -> None:
    """Raise GqcError on what is neither a name nor a pattern."""
    for target in targets:
        if not isinstance(target, str):
            raise GqcError(f"quantization config: {target!r} is no target")
        pattern_of(target.removeprefix("re:") if target.startswith("re:") else "")


LINEAR = frozenset({"Linear"})
OTHER_CLASSES = frozenset({"Embedding"})
KNOWN_CLASSES = LINEAR | OTHER_CLASSES
EMBEDDING = re.compile(r"embed|wte|wpe|(^|\.)shared$", re.IGNORECASE)
"""Names of layers that may be embeddings, where the model's class is not known."""


class Classes:
    """The classes of a model's layers, which its files do not name. It is built when first asked
    for, without weights; where that cannot be, names tell embeddings from linear layers.
    """

    def __init__(self, config: dict[str, Any]):
        self.config = config

    @cached_property
    def places(self) -> Places | None:
        model, _ = built(self.config)
        return None if model is None else Places(model)

    @property
    def known(self) -> bool:
        return self.places is not None

    def has(self, name: str) -> bool:
        """Whether the model has a module of that name or class."""
        assert self.places is not None
        modules = self.places.model.named_modules()
        return any(name in (path, *names_of(type(module))) for path, module in modules)

    def of(self, layer: str) -> frozenset[str]:
        """Names of the class of a layer in the files, and of those that it derives from."""
        found = {} if self.places is None else self.places.find(f"{layer}.weight")
        for name in found:
            assert self.places is not None
            module = self.places.model.get_submodule(name.rpartition(".")[0])
            return frozenset(names_of(type(module)))
        if EMBEDDING.search(layer):
            return OTHER_CLASSES
        return frozenset() if APART.search(layer) else LINEAR


def names_of(kind: type) -> list[str]:
    """Names of a class and of those that it derives from, up to `Module`."""
    ends = ("Module", "object")
    return [each.__name__ for each in kind.__mro__ if each.__name__ not in ends]


class CompressedTensors(Reader):
    PARTS = frozenset(
        {
            *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape"),
            *("weight_global_scale", "weight_g_idx", "input_global_scale", "input_scale"),
            "input_zero_point",
        }
    )
    HIDDEN = frozenset({"k_scale", "v_scale", "q_scale", "output_scale", "output_zero_point"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        sparsity = option(quantization, "sparsity_config", dict, {})
        if sparsity and (form := sparsity.get("format")) != "dense":
            raise GqcError(
                f"quantization config: sparsity_config has the format {form!r}; sparse weights are "
                "not read: save the model with dense ones"
            )
        self.form = option(quantization, "format", str, "")
        groups = option(quantization, "config_groups", dict, {})
        found = {name: self.group(name, group) for name, group in groups.items()}
        self.groups = [group for group in found.values() if group is not None]
        self.classes = Classes(config)
        transforms = option(quantization, "transform_config", dict, {})
        self.transforms = Transforms(transforms, tensors, self.matches, self.is_embedding)
        self.say_what_is_left(quantization, [name for name, g in found.items() if g is None])
        for group in self.groups:
            self.check_classes(group)

    def say_what_is_left(self, quantization: dict[str, Any], groups: list[str]) -> None:
        """Warn of what is quantized beside weights and their inputs. Raises GqcError on nothing."""
        left = [f"{name}, which has no weights" for name in groups]
        left += [] if not quantization.get("kv_cache_scheme") else ["kv_cache_scheme"]
        left += [] if not any(group.outputs for group in self.groups) else ["output_activations"]
        if not self.groups and not left and not quantization.get("transform_config"):
            raise GqcError("quantization config: config_groups is empty")
        if left:
            warnings.warn(
                f"quantization config: {', '.join(left)}: attention and its cache are left as "
                "they are, and so are outputs of layers",
                stacklevel=4,
            )

    def check_classes(self, group: Group) -> None:
        """Raise GqcError if a target is neither a pattern, nor a layer, nor a class of layers."""
        for target in group.targets:
            known = target in KNOWN_CLASSES or target.startswith("re:") or "." in target
            known = known or any(name.startswith(f"{target}.") for name in self.tensors.specs)
            if not known and self.classes.known and not self.classes.has(target):
                raise GqcError(
                    f"quantization config: {target!r} is a target, but no layer and no class of "
                    "the model: correct config_groups"
                )

    def group(self, name: str, config: Any) -> Group | None:
        """A group of the config; None of one without weights, as of attention."""
        if not isinstance(config, dict):
            raise GqcError(f"quantization config: {name} names a preset; write it out")
        if "weights" in config and config["weights"] is None:
            return None
        form = option(config, "format", str, self.form)
        if form not in LAYOUTS:
            raise GqcError(
                f"quantization config: format is {form!r}, expected one of {', '.join(LAYOUTS)}"
            )
        weights = Weights.of(option(config, "weights", dict))
        if not LAYOUTS[form].takes(weights):
            raise GqcError(f"quantization config: {name} is {form}, which has no {weights}")
        targets = option(config, "targets", list, [])
        check_targets(targets)
        inputs = option(config, "input_activations", dict, {})
        outputs = bool(config.get("output_activations"))
        return Group(tuple(targets), LAYOUTS[form], weights, inputs, outputs)

    def group_of(self, layer: str) -> Group:
        """The group of a layer: one that names it, or else one for its class.

        Raises GqcError if there is none.
        """
        if named := [group for group in self.groups if group.is_for(layer)]:
            return named[0]
        classes = self.classes_of(layer)
        for group in self.groups:
            if not classes.isdisjoint(group.targets):
                return group
        said = "; ".join(", ".join(group.targets) for group in self.groups) or "none"
        raise GqcError(
            f"{layer} is quantized, but no group of the config is for it or its class "
            f"({', '.join(sorted(classes))}); the groups target {said}"
        )

    def classes_of(self, layer: str) -> frozenset[str]:
        """Names of the classes of a layer; the model is built only where there may be several."""
        only_linear = not any({*group.targets} & OTHER_CLASSES for group in self.groups)
        is_plain = only_linear and not EMBEDDING.search(layer) and self.quantized(f"{layer}.weight")
        return LINEAR if is_plain else self.classes.of(layer)

    def is_embedding(self, layer: str) -> bool:
        return "Embedding" in self.classes_of(layer)

    def matches(self, targets: list[str], layer: str) -> bool:
        """Whether a target names a layer, or its class."""
        return is_named(targets, layer) or not self.classes_of(layer).isdisjoint(targets)

    def names(self) -> list[str]:
        """Names of the parameters; the matrices of transforms are none."""
        return [name for name in super().names() if not self.transforms.stored.fullmatch(name)]

    def read(self, name: str) -> Weight:
        """A parameter, with what transforms do to the layer's input or output as it runs."""
        return self.transforms.applied(name, super().read(name))

    def weight(self, layer: Layer) -> BlockScaled | Permuted:
        group = self.group_of(layer.name)
        return group.layout.read(layer, group.weights)

    def activation(self, name: str) -> Scheme | None:
        layer = self.quantized(name)
        inputs = self.group_of(layer.name).inputs if layer else {}
        if layer is None or not inputs:
            return None
        key = (inputs.get("type"), inputs.get("num_bits"), inputs.get("group_size"))
        scheme = next((s for known, s in ACTIVATIONS.items() if known == key), None)
        if scheme is None:
            warn_of_inputs(f"{key[1]} bits ({key[0]}, by {inputs.get('strategy')})")
            return None
        static = scheme.tensor_scale and layer.is_static("input_global_scale")
        return replace(scheme, static=static)

    def input_scale(self, name: str) -> torch.Tensor | None:
        layer = self.quantized(name)
        scale = layer.calibrated("input_global_scale") if layer else None
        return None if scale is None else scale.reciprocal()
