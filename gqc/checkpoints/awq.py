"""AWQ as AutoAWQ writes it: the layouts of its GEMM, GEMV and GEMV-fast kernels.

Codes q and zero points z have 4 bits, unsigned, and a weight [N, K] is `(q − z) · s` with a scale s
for each group of a row. In the GEMV-fast layout it is `q · s + z`, for z holds −s·z in f16.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from gqc.checkpoints.bits import unpack
from gqc.checkpoints.exceptions import Exceptions
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import SCALES, Layer, Reader
from gqc.checkpoints.weights import block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled

BITS, PER_WORD = 4, 8

COLUMN = [0, 4, 1, 5, 2, 6, 3, 7]
"""Nibble of a word that holds column 0 … 7, in the GEMM layout."""


def gemm_columns(words: torch.Tensor) -> torch.Tensor:
    """Codes [R, N] of words [R, N/8]."""
    codes = unpack(words, BITS, words.shape[1] * PER_WORD)
    return codes.view(len(words), -1, PER_WORD)[..., COLUMN].flatten(1)


def gemm(layer: Layer, group: int | None) -> BlockScaled:
    """qweight i32 [K, N/8], qzeros i32 [K/g, N/8], scales [K/g, N]."""
    k, columns = layer.spec("qweight", 2).shape
    blocks = groups(layer, k, group)
    words = layer.read("qweight", ["I32"], (k, columns))
    zeros = layer.read("qzeros", ["I32"], (blocks, columns))
    scale = layer.read("scales", SCALES, (blocks, columns * PER_WORD))
    codes, zero = gemm_columns(words).T.contiguous(), gemm_columns(zeros).T.contiguous()
    return block_scaled("ui4", (1, group), codes, scale.T.contiguous(), zero, "quantized")


def padded_blocks(blocks: int, group: int) -> int:
    """Scales of a row that the GEMV layouts store, those past the last group being padding."""
    multiple = {64: 2, 32: 4}.get(group, 1)
    words = -(-blocks // PER_WORD)
    return -(-words // multiple) * multiple * PER_WORD


def gemv(layer: Layer, group: int | None) -> BlockScaled:
    """qweight i32 [N, K/8], qzeros i32 [N, P/8], scales [N, P], P being K/g and padding."""
    n, words = layer.spec("qweight", 2).shape
    k = words * PER_WORD
    blocks = groups(layer, k, group)
    padded = padded_blocks(blocks, group or k)
    codes = unpack(layer.read("qweight", ["I32"], (n, words)), BITS, k)
    zero = unpack(layer.read("qzeros", ["I32"], (n, padded // PER_WORD)), BITS, blocks)
    scale = layer.read("scales", SCALES, (n, padded))[:, :blocks].contiguous()
    return block_scaled("ui4", (1, group), codes, scale, zero.contiguous(), "quantized")


def gemv_fast(layer: Layer, group: int | None) -> BlockScaled:
    """qweight i16 [N/4, K], scales and qzeros (also called scaled_zeros) [P, N].

    Words hold four rows by 64 columns after each other, in which every 32 columns (a, b, h) of
    4×4×2 were turned to (b, a, h), and then each 8 put into even ones before odd ones.
    """
    quarters, k = layer.spec("qweight", 2).shape
    n, blocks = quarters * 4, groups(layer, k, group)
    if k % 64:
        raise layer.error("qweight", f"has {k} columns; this layout needs a multiple of 64")
    padded = padded_blocks(blocks, group or k)
    words = layer.read("qweight", ["I16"], (quarters, k)).contiguous().view(torch.uint8)
    nibbles = unpack(words, BITS, 4 * k).view(quarters, k // 64, 4, 64)
    rows = nibbles.transpose(1, 2).reshape(n, k // 32, 4, 2, 4)  # …, b, h, a
    codes = rows.permute(0, 1, 4, 2, 3).reshape(n, k)
    scale = layer.read("scales", SCALES, (padded, n))[:blocks].T.contiguous()
    part = "scaled_zeros" if layer.has("scaled_zeros") else "qzeros"
    zero = layer.read(part, SCALES, (padded, n))[:blocks].T.contiguous()
    return block_scaled("ui4", (1, group), codes, scale, zero, "rescale")


def groups(layer: Layer, k: int, group: int | None) -> int:
    """Number of groups of a row of K elements."""
    if group is not None and k % group:
        raise layer.error("qweight", f"has K = {k}, which groups of {group} do not divide")
    return k // group if group else 1


LAYOUTS: dict[str, Callable[[Layer, int | None], BlockScaled]] = {
    "gemm": gemm,
    "gemv": gemv,
    "gemv_fast": gemv_fast,
}
"""Layouts by `version` of the config; `gemm` is also what others than AutoAWQ write."""


VERSION_KEYS = ("version", "checkpoint_format", "format")
"""Keys of the layout: AutoAWQ's, then GPTQModel's."""


class Awq(Reader):
    PARTS = frozenset({"qweight", "qzeros", "scales", "scaled_zeros"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        version = next((v for key in VERSION_KEYS if (v := quantization.get(key))), "gemm")
        if not isinstance(version, str) or version.lower() not in LAYOUTS:
            raise GqcError(
                f"quantization config: version is {version!r}, expected one of "
                f"{', '.join(LAYOUTS)}: save the model in one of these"
            )
        self.layout = LAYOUTS[version.lower()]
        self.exceptions = Exceptions(quantization)
        for each in (quantization, *filter(None, dict(self.exceptions.configs).values())):
            group_of(each)  # raises on what is wrong

    def weight(self, layer: Layer) -> BlockScaled:
        return self.layout(layer, group_of(self.exceptions.config_of(layer, "qweight")))


def group_of(config: Mapping[str, Any]) -> int | None:
    """Elements of a group, None for a whole row. Raises GqcError on a config of other bits."""
    bits = config.get("bits", config.get("w_bit", BITS))
    if bits != BITS:
        raise GqcError(f"quantization config: bits is {bits!r}; AWQ has 4")
    return group_size(config, "group_size" if "group_size" in config else "q_group_size")


def group_size(config: Mapping[str, Any], key: str = "group_size") -> int | None:
    """Elements of a group, None for a whole row, which configs write as -1."""
    group = option(config, key, int)
    if group != -1 and not 0 < group <= 1 << 20:
        raise GqcError(f"quantization config: {key} is {group}, expected -1 or a positive number")
    return None if group == -1 else group
