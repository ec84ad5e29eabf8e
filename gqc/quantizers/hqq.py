"""HQQ: scales and zero points under which a weight's errors are few rather than small.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): minimize the
sum of |w − ŵ|^p, p < 1, in turns of two closed forms. A proximal step shrinks errors e to
sign(e) · max(|e| − |e|^(p−1) / β, 0); then the zero point becomes the best one, by least squares,
that the codes have for the weights without them; β grows. Theirs moves zero points alone; here the
scale moves too, for the best line through codes and weights is as closed a form. Codes begin on a
grid that has 0 (theirs do at 4 bits): of weights that crowd around it, the errors cancel then; once
over the block's range, once over a part of it, as the turns end in the minimum that is next. What
comes out is rounded to the type's formats. Of both, and of round-to-nearest's, a block takes what
has the least sum of squares: what a model loses follows that more closely than the sum of |e|^p.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled, per_block
from gqc.quantizers.rtn import codes_under, rtn, stored

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.formats.elements import Element
    from gqc.quantizers.statistics import Statistics

P = 0.7
BETA, KAPPA = 10.0, 1.01
TURNS = 20
"""All as the authors have them."""
GAIN = 1e-4
"""Turns end when the squares of errors fall by less than this part of them."""
RANGES = (1.0, 0.85)
"""Parts of a block's range, about 0, that codes begin over."""
BLOCK = (1, 3)
"""Dimensions of a block."""


def hqq(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a weight [N, K] to integers under float zero points.

    Scales start from those of round-to-nearest under `scale_rule`. Raises ValueError on a type
    without float zero points, and as round-to-nearest does.
    """
    if not type_.has_zero or type_.mode.integer:
        raise ValueError("HQQ moves float zero points, which the type does not have")
    found = rtn(weight, type_, scale_rule, tensor_scale)
    for rows, part in found.slices():
        improve(part, weight.detach()[rows].float())
    return found


def improve(found: BlockScaled, weight: torch.Tensor) -> None:
    """Give blocks of some rows what serves them better than round-to-nearest's, in place."""
    blocks, mode = found.blocked(weight), found.type.mode  # [N/A, A, K/B, B]
    assert found.zero is not None
    scale = per_block(found.scale).float()
    offset = mode.dequantize(0, scale, per_block(found.zero).float())
    element = found.type.format
    for fitted in [fit(blocks, element, scale * part, offset * part) for part in RANGES]:
        consider(found, blocks, *fitted)


def consider(
    found: BlockScaled, blocks: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor
) -> None:
    """Give blocks that err less by it this scale and offset [N/A, 1, K/B, 1], rounded, in place."""
    import torch

    type_, zero = found.type, found.zero
    assert zero is not None and type_.mode.zero is not None
    scale = scale.to(found.scale.dtype)
    moved = type_.mode.zero(offset, scale.float(), 0).to(zero.dtype)
    codes = codes_under(blocks, scale.view_as(found.scale), moved.view_as(zero), type_)
    tried = type_.mode.dequantize(codes, scale.float(), moved.float())
    before, after = (
        (values - blocks).square_().sum(BLOCK, keepdim=True)
        for values in (found.blocked(found.dequantize()), tried)
    )
    better = after < before  # never where a format had no room
    for old, new in ((found.scale, scale), (zero, moved)):
        old.copy_(torch.where(better, new, per_block(old)).view_as(old))
    codes = torch.where(better, stored(codes, type_.format), found.blocked(found.codes))
    found.codes.copy_(codes.view_as(found.codes))


def fit(
    blocks: torch.Tensor, element: Element, scale: torch.Tensor, offset: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scales and offsets [N/A, 1, K/B, 1] for blocks, from given ones; a weight is
    code · scale + offset."""
    import torch

    offset = (offset / scale).round_() * scale
    last = torch.inf
    for turn in range(TURNS):
        codes = blocks.sub(offset).div_(scale).round_().clamp_(element.minimum, element.maximum)
        error = torch.addcmul(offset, codes, scale).neg_().add_(blocks)
        loss = float(error.square().sum())
        if not loss < last * (1 - GAIN):
            break
        last = loss
        error = without_outliers(error, BETA * KAPPA**turn)
        slope, shift = line(codes, error)
        scale, offset = torch.where(scale + slope > 0, scale + slope, scale), offset + shift
    return scale, offset


def without_outliers(error: torch.Tensor, beta: float) -> torch.Tensor:
    """Errors less those that the proximal step leaves, which are errors above β^(−1 / (2 − p))."""
    import torch

    least, greatest = torch.aminmax(error)
    if max(-float(least), float(greatest)) <= beta ** (-1 / (2 - P)):
        return error
    size = error.abs()
    return error - (size - size.pow(P - 1) / beta).clamp_(min=0).copysign_(error)


def line(x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Slope and height of the line y ≈ slope · x + height of each block, by least squares."""
    import torch

    across, up = x.mean(BLOCK, keepdim=True), y.mean(BLOCK, keepdim=True)
    x = x - across
    spread = x.square().sum(BLOCK, keepdim=True)
    slope = torch.where(spread > 0, (x * y).sum(BLOCK, keepdim=True) / spread, 0)
    return slope, up - slope * across
