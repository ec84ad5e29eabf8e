"""Round-to-nearest: the scale from each block's range, then each element to its nearest code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled, per_block

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType

    Range = tuple[torch.Tensor, torch.Tensor]
    """Least and greatest element of each block."""

SCALE_RULES: dict[str, Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]] = {
    # Asymmetric: the range is spread over all codes.
    "minmax": lambda low, high, bits: (high - low) / (2**bits - 1),
    # Symmetric. half: amax/7.5 at 4 bits (GPTQ, compressed-tensors); restricted: amax/7 (AutoAWQ,
    # ModelOpt); no_clip: the least scale under which both ends of the range have a code (torchao).
    "half": lambda low, high, bits: maximum(-low, high) / (2 ** (bits - 1) - 0.5),
    "restricted": lambda low, high, bits: maximum(-low, high) / (2 ** (bits - 1) - 1),
    "no_clip": lambda low, high, bits: maximum(
        -low / 2 ** (bits - 1), high / (2 ** (bits - 1) - 1)
    ),
}
"""Scale of each block from its least and greatest element and the width of the code."""


def maximum(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.maximum(a, b)


def rtn(weight: torch.Tensor, type_: BlockScaledType, scale_rule: str) -> BlockScaled:
    """Quantize a weight [N, K] to an integer block-scaled type.

    The scale and zero point are rounded to their formats first, and the codes chosen for those.
    `scale_rule` names a row of `SCALE_RULES`. Raises ValueError if a scale or zero point overflows
    its format, the weight holds inf or NaN, or negative numbers that the type has no code for.
    """
    import torch

    from gqc.dialects.torch_types import DTYPES

    weight, element = weight.detach().float(), type_.format
    if not element.is_integer:
        raise ValueError(f"round-to-nearest gives integers, not {element.name}")
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds inf or NaN")
    rows, columns = type_.block_of(weight.shape)
    blocks = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))  # [N/A, A, K/B, B]
    low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    mode, bits = type_.zero_mode.data, element.bits
    if mode == "none" and not element.signed and low.min() < 0:
        raise ValueError(
            f"{element.name} without a zero point has no negative codes; use si{bits} or a zero"
        )
    if mode in ("original", "quantized"):  # these represent 0 exactly, so the range must hold it
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale = SCALE_RULES[scale_rule](low, high, bits).to(DTYPES[type_.scale])
    # A block of equal elements has no range: any scale serves, 1 keeps the zero point finite.
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = zero_point(low, scale.float(), type_)
    if not all(torch.isfinite(p.float()).all() for p in (scale, zero) if p is not None):
        raise ValueError(f"a scale or zero point overflows {type_.scale}; use a wider scale format")
    z = per_block(zero).float() if zero is not None else None
    codes = CODES[mode](blocks, per_block(scale).float(), z).round()
    codes = codes.clamp(element.minimum, element.maximum).reshape(weight.shape)
    return BlockScaled(type_, codes.to(torch.int8 if element.signed else torch.uint8), scale, zero)


def zero_point(
    low: torch.Tensor, scale: torch.Tensor, type_: BlockScaledType
) -> torch.Tensor | None:
    """Zero point of each block, in the type's format: the least code stands for `low`."""
    import torch

    from gqc.dialects.torch_types import DTYPES

    match type_.zero_mode.data:
        case "rescale":
            return (low - type_.format.minimum * scale).to(DTYPES[type_.zero])
        case "original":
            return (type_.format.minimum - low / scale).to(DTYPES[type_.zero])
        case "quantized":
            return (-low / scale).round().clamp(0, 2**type_.format.bits - 1).to(torch.uint8)
    return None


CODES = {
    "none": lambda w, s, z: w / s,
    "original": lambda w, s, z: w / s + z,
    "rescale": lambda w, s, z: (w - z) / s,
    "quantized": lambda w, s, z: w / s + z,
}
"""The unrounded code of an element for each zero mode: `ZERO_MODE_MEANING` solved for q."""
