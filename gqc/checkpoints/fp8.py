"""FP8: codes of E4M3, or E5M2, under factors for a whole weight, for each row, or for blocks.

Blocks of 128×128 are DeepSeek-V3's and transformers' (`weight_scale_inv`); one factor a weight is
AutoFP8's and Mistral's; one a row is fbgemm's. The shape of the factors says which. GPTQModel
stores divisors by the same name, and says so.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection
from typing import Any, ClassVar

import torch

from gqc.checkpoints import stacks
from gqc.checkpoints.compressed_tensors import finer
from gqc.checkpoints.files import Spec, Tensors, option
from gqc.checkpoints.reader import SCALES, Layer, Reader, Stack, warn_of_inputs
from gqc.checkpoints.stacks import Stacked
from gqc.checkpoints.weights import block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled

ELEMENTS = {"F8_E4M3": "f8E4M3FN", "F8_E5M2": "f8E5M2"}
"""Elements by what safetensors calls them."""

BLOCK = (128, 128)
"""The block that factors are for where nothing says another."""

CACHE = ("k_scale", "v_scale", "q_scale", "kv_scale")
"""Last parts of names of what quantizes attention and its cache."""

INVERSE = "inverse"
"""What GPTQModel's configs say of scales that weights were multiplied by."""

FP8_SCALES = (*SCALES, "F8_E8M0")


def float8(layer: Layer, part: str, block: tuple[int, int] = BLOCK) -> BlockScaled:
    """weight e4m3 or e5m2 [N, K], and factors: [] or [1]; [N] or [N, 1]; for blocks A×B [⌈N/A⌉,
    ⌈K/B⌉], or [⌈N/A⌉, 1, ⌈K/B⌉, 1]."""
    n, k = layer.spec("weight", 2).shape
    spec = layer.spec(part)
    codes = layer.read("weight", [*ELEMENTS], (n, k)).view(torch.uint8)
    element = ELEMENTS[layer.spec("weight").dtype]
    blocks = tuple(-(-extent // size) for extent, size in zip((n, k), block, strict=True))
    if spec.shape in ((), (1,), (1, 1)):
        scale = layer.read(part, FP8_SCALES, spec.shape).reshape(1, 1)
        return block_scaled(element, (None, None), codes, scale)
    if spec.shape in ((n,), (n, 1)):
        scale = layer.read(part, FP8_SCALES, spec.shape).reshape(n, 1)
        return block_scaled(element, (1, None), codes, scale)
    if without_ones(spec) != blocks:
        raise layer.error(
            part,
            f"is {spec} for a weight {[n, k]}, expected [] for all of it, [{n}] or [{n}, 1] for "
            f"rows, or {list(blocks)} for blocks of {block[0]}x{block[1]}",
        )
    scale, size = finer(layer, part, FP8_SCALES, block, (n, k))
    return block_scaled(element, size, codes, scale)


def inverted(weight: BlockScaled) -> BlockScaled:
    """The weight under the reciprocals of its scales, in float32."""
    scale = weight.scale.float()
    if not bool((scale > 0).all()):
        raise GqcError("scales that divide are not all positive")
    sizes = zip(weight.type.block_of(weight.codes.shape), weight.codes.shape, strict=True)
    block = tuple(None if size == extent else size for size, extent in sizes)
    return block_scaled(weight.type.format.name, block, weight.codes, scale.reciprocal())


def without_ones(spec: Spec) -> tuple[int, ...]:
    """The shape of factors for blocks, from one that has room for the blocks."""
    shape = spec.shape
    return (shape[0], shape[2]) if len(shape) == 4 and shape[1] == shape[3] == 1 else shape


def warn_of_cache(tensors: Tensors, names: Collection[str] = CACHE) -> None:
    """Tell that the cache of keys and values is left as it is, where a checkpoint quantizes it.

    names: last parts of names of the scales of the cache.
    """
    if any(name.rpartition(".")[2] in names for name in tensors.specs):
        warnings.warn(
            "the checkpoint quantizes the cache of keys and values, which is left as it is",
            stacklevel=4,
        )


class Fp8(Reader):
    """`weight`, and `weight_scale_inv` or `weight_scale`, both of which are factors."""

    PARTS = frozenset(
        {"weight_scale_inv", "weight_scale", "activation_scale", "input_scale", "input_scale_ub"}
    )
    FACTORS: ClassVar = ("weight_scale_inv", "weight_scale")
    KEYS = frozenset(FACTORS)
    HIDDEN = frozenset(CACHE)
    STACKS = True

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        block = option(quantization, "weight_block_size", list, [*BLOCK])
        if len(block) != 2 or any(type(extent) is not int or extent < 1 for extent in block):
            raise GqcError(f"quantization config: weight_block_size is {block!r}, expected [A, B]")
        self.block = (block[0], block[1])
        semantics = quantization.get("weight_scale_semantics")
        if semantics not in (None, INVERSE):
            raise GqcError(
                f"quantization config: weight_scale_semantics is {semantics!r}, expected "
                f"{INVERSE!r} or none: save the model in one of these"
            )
        self.divides = semantics == INVERSE
        warn_of_cache(tensors)

    def weight(self, layer: Layer) -> Stacked:
        part = next(part for part in self.FACTORS if layer.has(part))
        if isinstance(layer, Stack):
            if self.divides:
                raise layer.error(part, "divides weights of experts, which is not read")
            return stacks.float8(layer, part, self.block)
        weight = float8(layer, part, self.block)
        return layer.built(part, lambda: inverted(weight)) if self.divides else weight

    def activation(self, name: str) -> None:
        if self.quantized(name):
            warn_of_inputs("FP8")
