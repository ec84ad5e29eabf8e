"""Weights in NVFP4 and the MX formats, from the parts that several formats store alike."""

from __future__ import annotations

import torch

from gqc.checkpoints.bits import unpack
from gqc.checkpoints.reader import Layer
from gqc.checkpoints.weights import block_scaled
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import ELEMENTS

NVFP4_BLOCK, MX_BLOCK = 16, 32

E8M0 = ("U8", "F8_E8M0")
"""Formats that E8M0 scales are stored as: bytes, or themselves."""

NATIVE = {"f8E4M3FN": "F8_E4M3", "f8E5M2": "F8_E5M2"}
"""Elements that safetensors has a format for; others are packed in bytes, low bits first."""


def codes_of(layer: Layer, part: str, element: str, block: int) -> torch.Tensor:
    """Codes [N, K], uint8, of K divided by the block."""
    n, width = layer.spec(part, 2).shape
    bits = ELEMENTS[element].bits
    k, rest = divmod(width * 8, bits)
    if rest or k % block:
        raise layer.error(part, f"has rows of {width * 8} bits, no blocks of {block} {element}")
    stored = layer.read(part, [NATIVE.get(element, "U8")], (n, width))
    return stored.view(torch.uint8) if element in NATIVE else unpack(stored, bits, k)


def mx(layer: Layer, codes: str, scale: str, element: str) -> BlockScaled:
    """codes [N, K·b/8], scale [N, K/32]: OCP MX v1.0, code · 2^(scale − 127)."""
    values = codes_of(layer, codes, element, MX_BLOCK)
    n, k = values.shape
    shared = e8m0(layer, scale, n, k // MX_BLOCK)
    return block_scaled(element, (1, MX_BLOCK), values, shared)


def e8m0(layer: Layer, part: str, *shape: int) -> torch.Tensor:
    """E8M0 scales. Raises GqcError if one is NaN."""
    scale = layer.read(part, E8M0, shape).view(torch.uint8)
    if (scale == 0xFF).any():
        raise layer.error(part, "holds NaN (0xFF); the file is damaged")
    return scale.view(torch.float8_e8m0fnu)


def nvfp4(layer: Layer, codes: str, scale: str, tensor_scale: torch.Tensor | None) -> BlockScaled:
    """codes u8 [N, K/2], scale e4m3 [N, K/16]: code · scale · tensor scale, which is a factor."""
    values = codes_of(layer, codes, "f4E2M1FN", NVFP4_BLOCK)
    n, k = values.shape
    blocks = k // NVFP4_BLOCK
    shared = positive(layer, scale, layer.read(scale, ["F8_E4M3"], (n, blocks)))
    return block_scaled("f4E2M1FN", (1, NVFP4_BLOCK), values, shared, tensor_scale=tensor_scale)


def positive(layer: Layer, part: str, scale: torch.Tensor) -> torch.Tensor:
    """E4M3 scales without a sign: matrix units read none."""
    if (scale.view(torch.uint8) > 0x7F).any():
        raise layer.error(part, "holds negative scales; the file is damaged")
    return scale
