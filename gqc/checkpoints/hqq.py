"""HQQ in safetensors: codes and what describes them, all stored as tensors of each layer.

A weight [N, K] is `(q − zero) · scale` with floating zero points, in groups of g. On axis 1 it is
seen as [NK/g, g], a group in each row; on axis 0 as [g, NK/g], a group in each column.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import Layer, Reader
from gqc.checkpoints.weights import Permuted, block_scaled
from gqc.formats.block_scaled import BlockScaled

FLOATS = ("F16", "BF16", "F32")
NUMBERS = ("I64", "I32", "U8", "F32")
LARGEST = 1 << 40
"""No weight has as many elements."""

TORCH_DTYPES = ("float16", "bfloat16", "float32", "uint8", "int32")
"""Names of dtypes in these files, which are looked up here and never evaluated."""


@dataclass(frozen=True)
class Packing:
    """How rows are packed: of `count` equal parts of them, the first in the highest bits."""

    bits: int
    count: int
    dtype: str
    torch_dtype: torch.dtype

    def unpack(self, words: torch.Tensor) -> torch.Tensor:
        """Codes [count·R, C], uint8, of words [R, C]."""
        mask = (1 << self.bits) - 1
        shifts = range((self.count - 1) * self.bits, -1, -self.bits)
        return torch.cat([(words >> shift & mask).to(torch.uint8) for shift in shifts])


PACKINGS: dict[str, Packing] = {
    "8bit_u8": Packing(8, 1, "U8", torch.uint8),
    "4bit_u8": Packing(4, 2, "U8", torch.uint8),
    "3bit_32": Packing(3, 10, "I32", torch.int32),
    "2bit_u8": Packing(2, 4, "U8", torch.uint8),
    "1bit_u8": Packing(1, 8, "U8", torch.uint8),
}

WIDTHS: dict[float, str] = {
    **{8: "8bit_u8", 6: "8bit_u8", 5: "8bit_u8", 4: "4bit_u8", 3: "3bit_32"},
    **{2: "2bit_u8", 1.58: "2bit_u8", 1: "1bit_u8"},
}
"""Packing by bits."""

META = (
    *("nbits", "group_size", "shape", "axis", "packing", "unpack_view_dtype", "view_as_float"),
    *("quant_scale", "quant_zero", "compute_dtype", "offload_meta", "encoded_state_dict"),
    *("stores_quant_config", "channel_wise", "optimize", "round_zero"),
)


class Hqq(Reader):
    PARTS = frozenset({"W_q", "scale", "zero", *META})
    KEYS = frozenset({"W_q", "nbits", "packing"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        params = option(quantization, "quant_config", dict, {})
        self.params = option(params, "weight_quant_params", dict, {})

    def weight(self, layer: Layer) -> BlockScaled | Permuted:
        for part in ("quant_scale", "quant_zero"):
            if layer.has(part) and number(layer, part):
                raise layer.error(part, "is set: quantized scales are not read; save without")
        for part in ("compute_dtype", "unpack_view_dtype"):
            if layer.has(part) and text(layer, part).removeprefix("torch.") not in TORCH_DTYPES:
                raise layer.error(part, f"is none of {', '.join(TORCH_DTYPES)}")
        n, k = shape_of(layer)
        axis, size = number(layer, "axis"), self.group(layer, n, k)
        packing = self.packing(layer)
        rows, columns = (n * k // size, size) if axis == 1 else (size, n * k // size)
        codes = self.codes(layer, packing, rows, columns)
        one_each = [(rows, 1)] if axis == 1 else [(1, columns)]
        scale = layer.read("scale", FLOATS, *one_each)
        zero = layer.read("zero", FLOATS, *one_each)
        element = f"ui{packing.bits}"
        if axis == 1:
            parts = (codes.view(n, k), scale.view(n, -1), zero.view(n, -1))
            return block_scaled(element, (1, size), *parts, mode="original")
        # Rows r, r + R, r + 2R, … share scales, R = N/g: put them side by side.
        order = torch.arange(n).view(size, -1).T.flatten()
        parts = (codes.view(n, k)[order], scale.view(-1, k), zero.view(-1, k))
        return Permuted(block_scaled(element, (size, 1), *parts, mode="original"), order, dim=0)

    def group(self, layer: Layer, n: int, k: int) -> int:
        """Elements of a group, which must be of one row, or one column on axis 0."""
        axis = number(layer, "axis")
        if axis not in (0, 1):
            raise layer.error("axis", f"is {axis}, expected 0 or 1")
        along = k if axis == 1 else n
        size = int(number(layer, "group_size")) if layer.has("group_size") else along
        said = self.params.get("group_size", size)
        if size != said and said is not None:
            raise layer.error("group_size", f"is {size}, but the config says {said!r}")
        if size < 1 or along % size:
            raise layer.error("group_size", f"is {size}, which does not divide {along}")
        return size

    def packing(self, layer: Layer) -> Packing:
        bits, name = round(number(layer, "nbits"), 2), text(layer, "packing")
        said = self.params.get("nbits", bits)
        if WIDTHS.get(bits) != name or said != bits:
            raise layer.error("packing", f"is {name!r} of {bits:g} bits; the config says {said!r}")
        return PACKINGS[name]

    def codes(self, layer: Layer, packing: Packing, rows: int, columns: int) -> torch.Tensor:
        """Codes [rows, columns]; words may be stored as the bits of floats."""
        if packing.bits != 3 and rows % packing.count:
            raise layer.error("W_q", f"cannot hold {rows} rows, {packing.count} of them in a word")
        height = -(-rows // packing.count)
        if layer.has("view_as_float") and number(layer, "view_as_float"):
            spec = layer.spec("W_q", 2)
            width = {"F32": 4, "F16": 2, "BF16": 2}.get(spec.dtype, 1)
            stored = columns * packing.torch_dtype.itemsize // width
            words = layer.read("W_q", FLOATS, (height, stored), bits=True).view(packing.torch_dtype)
        else:
            words = layer.read("W_q", [packing.dtype], (height, columns))
        return packing.unpack(words)[:rows]


def shape_of(layer: Layer) -> tuple[int, int]:
    n, k = layer.read("shape", ("I64", "I32"), (2,)).tolist()
    if min(n, k) < 1 or n * k > LARGEST:
        raise layer.error("shape", f"is {[n, k]}, expected [N, K]")
    return n, k


def number(layer: Layer, part: str) -> float:
    value = layer.read(part, NUMBERS, (), (1,)).item()
    if not math.isfinite(value):
        raise layer.error(part, f"is {value}")
    return value


def text(layer: Layer, part: str) -> str:
    """A string, stored as a byte for each character."""
    spec = layer.spec(part, 1)
    if spec.dtype != "U8" or spec.shape[0] > 64:
        raise layer.error(part, f"is {spec}, expected U8 of at most 64 characters")
    return bytes(layer.tensors.read(layer.key(part)).tolist()).decode("latin-1")
