"""Round-to-nearest: the scale from each block's range, then each element to its nearest code."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled, per_block
from gqc.formats.elements import SCALES, Element
from gqc.formats.packing import slices

if TYPE_CHECKING:
    import torch
    from xdsl.ir import Attribute

    from gqc.dialects.gq import BlockScaledType
    from gqc.quantizers.statistics import Statistics

    Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
    """Codes, scale and zero point of a weight."""

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


def rtn(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a weight [N, K] to an integer block-scaled type.

    The scale and zero point are rounded to their formats first, and the codes chosen for those: a
    scale near the least number of its format is rounded up, so that no element is clipped.
    `scale_rule` names a row of `SCALE_RULES`. Raises ValueError if a scale or zero point overflows
    its format, the weight holds inf or NaN, or negative numbers that the type has no code for; and
    on types of float elements, with scales that are powers of two, or with a tensor scale.
    """
    import torch

    if not type_.format.is_integer:
        raise ValueError(f"round-to-nearest gives integers, not {type_.element}")
    if SCALES[str(type_.scale)].mantissa == 0:
        raise ValueError(f"a scale of {type_.scale}, rounded to nearest, would clip: use f16")
    if type_.has_tensor_scale or tensor_scale is not None:
        raise ValueError("round-to-nearest gives no tensor scale")
    parts = [
        rtn_rows(rows, type_, scale_rule)
        for rows in slices(weight.detach(), type_.block_of(weight.shape)[0])
    ]
    codes, scale, zero = (
        torch.cat(part) if part[0] is not None else None for part in zip(*parts, strict=True)
    )
    assert codes is not None and scale is not None
    return BlockScaled(type_, codes, scale, zero)


def rtn_rows(weight: torch.Tensor, type_: BlockScaledType, scale_rule: str) -> Parts:
    """Codes, scale and zero point of some rows of a weight."""
    import torch

    weight, element, mode = weight.float(), type_.format, type_.mode
    rows, columns = type_.block_of(weight.shape)
    blocks = weight.unflatten(1, (-1, columns)).unflatten(0, (-1, rows))  # [N/A, A, K/B, B]
    low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    if not (torch.isfinite(low) & torch.isfinite(high)).all():  # a NaN is both of its block
        raise ValueError("the weight holds inf or NaN")
    if not type_.has_zero and not element.signed and low.min() < 0:
        bits = element.bits
        raise ValueError(
            f"{element.name} without a zero point has no negative codes; use si{bits} or a zero"
        )
    if mode.shifts_codes:  # the code that is the zero point stands for 0: the range must hold it
        low, high = low.clamp(max=0), high.clamp(min=0)
    scale, zero = grid(low, high, type_, scale_rule)
    codes = codes_under(blocks, scale, zero, type_).reshape(weight.shape)
    return stored(codes, element), scale, zero


def stored(codes: torch.Tensor, element: Element) -> torch.Tensor:
    """Codes in float32 as the integers that `BlockScaled` holds."""
    import torch

    if element.signed:
        return codes.to(torch.int8)
    between = torch.int8 if element.maximum < 128 else torch.int32
    return codes.to(between).to(torch.uint8)  # torch is slow from float to uint8


def grid(
    low: torch.Tensor, high: torch.Tensor, type_: BlockScaledType, scale_rule: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scales and zero points of blocks whose ranges these are, all of one shape."""
    import torch

    element, mode = type_.format, type_.mode
    exact = SCALE_RULES[scale_rule](low, high, element.bits)
    scale = raised(exact, rounded(exact, type_.scale, "scale"), type_.scale, element.bits)
    # A block of equal elements has no range: any scale serves, 1 keeps the zero point finite.
    scale = torch.where(exact == 0, torch.ones_like(scale), scale)
    if mode.zero is None:
        return scale, None
    zero = mode.zero(low, scale.float(), element.minimum)
    if mode.integer:
        return scale, zero.round_().clamp_(element.minimum, element.maximum).to(torch.uint8)
    return scale, rounded(zero, type_.zero, "zero")


def codes_under(
    blocks: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor | None, type_: BlockScaledType
) -> torch.Tensor:
    """Nearest codes of blocks [N/A, A, K/B, B] under their scales and zero points, in float32."""
    z = None if zero is None else per_block(zero).float()
    codes = type_.mode.code(blocks, per_block(scale).float(), z).round_()
    return codes.clamp_(type_.format.minimum, type_.format.maximum)


def rounded(exact: torch.Tensor, format: Attribute, part: str) -> torch.Tensor:
    """Numbers of a part of the scheme, `scale` or `zero`, in their format.

    Raises ValueError on overflow.
    """
    import torch

    from gqc.dialects.torch_types import DTYPES

    result = exact.to(DTYPES[format])
    if not torch.isfinite(result.float()).all():
        what = "a scale" if part == "scale" else "a zero point"
        raise ValueError(
            f"{what} overflows {format}: give the scheme {part}=bf16, which reaches as far as f32"
        )
    return result


def raised(
    exact: torch.Tensor, nearest: torch.Tensor, format: Attribute, bits: int
) -> torch.Tensor:
    """Scales in their format: the nearest, but for codes of `bits` bits the next number up where
    the nearest is less by more than 2**-bits.

    Such scales are subnormal. A smaller one would clip the end of a range by half a step or more; a
    larger one has steps of at most the format's least number more.
    """
    import torch

    tolerance = 2.0 ** -min(bits, SCALES[str(format)].mantissa + 1)  # normal numbers are within
    low = exact - nearest.float() > tolerance * exact
    if not low.any():
        return nearest
    word = torch.int16 if nearest.element_size() == 2 else torch.int32
    return torch.where(low, (nearest.view(word) + 1).view(nearest.dtype), nearest)
