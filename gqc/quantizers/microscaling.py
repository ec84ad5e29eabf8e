"""Microscaling: the scale from each block's greatest magnitude, then elements to nearest codes.

MXFP8, MXFP6, MXFP4 and MXINT8 (OCP MX v1.0, section 6.3), NVFP4, and any element under float32
scales, as of 8-bit integer activations; `gqc.formats.microscaling` holds the arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import Element
from gqc.formats.microscaling import (
    MX_ROUNDING,
    encode,
    f32_scale,
    mx_scale,
    nvfp4_scale,
    nvfp4_tensor_scale,
)
from gqc.formats.packing import slices

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.quantizers.statistics import Statistics

    ScaleRule = Callable[[torch.Tensor, Element, torch.Tensor | None], torch.Tensor]
    """Block scales from amax of each block, the element and the tensor scale."""


def mx_rule(rounding: str) -> ScaleRule:
    return lambda amax, element, tensor_scale: mx_scale(amax, element, rounding)


MICROSCALING_RULES: dict[str, dict[str, ScaleRule]] = {
    "f8E8M0FNU": {rounding: mx_rule(rounding) for rounding in MX_ROUNDING},
    "f8E4M3FN": {"amax": nvfp4_scale},
    "f32": {"amax": f32_scale},
}
"""Scale rules by the format of the scales that they give."""

TWO_LEVEL = ("f8E4M3FN",)
"""Formats of scales that go with a scale of the whole tensor: those without E8M0's range."""


def microscaling(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a tensor [..., K], in float32, to blocks along K under E8M0, E4M3 or f32 scales.

    `scale_rule`: floor, even, ceil or rceil for E8M0, amax for the others. `tensor_scale`: a
    float32 scalar for a type that has one, such as an activation's, calibrated; None takes it from
    the tensor. The block of a NaN is all NaN, and inf saturates (see `gqc.formats.microscaling`).
    Raises ValueError if the type, the scale rule and the tensor scale do not go together.
    """
    import torch

    refuse_mismatch(type_, weight.shape, scale_rule, tensor_scale)
    element, size = type_.format, type_.block_of(weight.shape)[-1]
    shape, rows = weight.shape, slices(weight.detach().reshape(-1, weight.shape[-1]))
    parts = [part.unflatten(-1, (-1, size)) for part in rows]  # [n, K/B, B]
    amax = torch.cat([part.float().abs().amax(-1) for part in parts])
    if type_.has_tensor_scale and tensor_scale is None:
        tensor_scale = nvfp4_tensor_scale(amax, element)
    scale = MICROSCALING_RULES[str(type_.scale)][scale_rule](amax, element, tensor_scale)
    # The very product that dequantization multiplies by, so that no other code is nearer.
    step = scale.float() if tensor_scale is None else scale.float() * tensor_scale
    steps = step.unsqueeze(-1).split([len(part) for part in parts])
    codes = [encode(part.float() / s, element) for part, s in zip(parts, steps, strict=True)]
    scale = scale.view(*shape[:-1], scale.shape[-1])
    return BlockScaled(type_, torch.cat(codes).view(shape), scale, tensor_scale=tensor_scale)


def refuse_mismatch(
    type_: BlockScaledType,
    shape: torch.Size,
    scale_rule: str,
    tensor_scale: torch.Tensor | None,
) -> None:
    """Raise ValueError on what this quantizer has no meaning for."""
    scale, (*outer, size) = str(type_.scale), type_.block_of(shape)
    if scale not in MICROSCALING_RULES:
        formats = ", ".join(MICROSCALING_RULES)
        raise ValueError(f"microscaling gives scales in {formats}, not {scale}")
    rules = MICROSCALING_RULES[scale]
    if scale_rule not in rules:
        known = ", ".join(rules)
        raise ValueError(f"no scale rule {scale_rule!r} for {scale}: choose one of {known}")
    if type_.has_zero:
        raise ValueError("microscaling gives no zero points")
    if type_.has_tensor_scale and scale not in TWO_LEVEL:
        raise ValueError(f"scales in {scale} go without a tensor scale")
    if tensor_scale is not None and not type_.has_tensor_scale:
        raise ValueError("a tensor scale is given, but the type has none")
    if any(extent != 1 for extent in outer) or shape[-1] % size:
        raise ValueError(
            f"blocks must lie along the last dimension and divide it: {list(shape)} in blocks of "
            f"{'x'.join(map(str, (*outer, size)))}"
        )
