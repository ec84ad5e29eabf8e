"""Scale search: of the scales near a rule's, each block takes the one under which it errs least.

The rules of `gqc.quantizers.microscaling` look at a block's greatest element alone. A scale below
theirs clips it and serves the others better; one above brings 4 bits' sparse upper codes elsewhere
(mapping the greatest to 4 in place of 6 is what "Four Over Six", arXiv 2512.02010, chooses from).
Scales of 8 bits are searched step by step, those in f32 by parts that clip ever more. The error is
the sum of squares over the block, of values as they are dequantized, in float32.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import Element
from gqc.formats.microscaling import encode
from gqc.formats.packing import slices
from gqc.quantizers.microscaling import microscaling
from gqc.quantizers.range_search import SHRINK, range_search

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.quantizers.statistics import Statistics

CANDIDATES = {"f8E8M0FNU": range(-2, 3), "f8E4M3FN": range(-6, 7)}
"""Distances from the rule's scale, in steps of the scale's format: to a quarter and four times it
for powers of two; to about 0.6 and 1.7 times it for E4M3."""
LEAST = {"f8E8M0FNU": 0, "f8E4M3FN": 1}
GREATEST = {"f8E8M0FNU": 254, "f8E4M3FN": 126}
"""Bytes of the least scale that is not 0 and of the greatest."""


def scale_search(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a weight [N, K] under searched scales, and zero points where the type has them.

    `scale_rule` and `tensor_scale` are microscaling's, whose scales are in the midst of what is
    searched, or round-to-nearest's, whose ranges are (`gqc.quantizers.range_search`); they are kept
    where no other is better. With statistics an error counts by the mean square of its input.
    Raises ValueError as those do, and where the weight holds inf or NaN.
    """
    return search(weight, type_, scale_rule, tensor_scale, importance(statistics))


def importance(statistics: Statistics | None) -> torch.Tensor | None:
    """What the square of an error counts in each column, [K]; None where all count alike.

    A hundredth of the mean is added, lest a column that calibration did not reach goes for nothing.
    """
    if statistics is None or not statistics.power.any():
        return None
    return statistics.power + statistics.power.mean() / 100


def search(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> BlockScaled:
    """`scale_search`, under the least sum of squares weighted by `weights` [K]."""
    import torch

    if type_.format.is_integer and str(type_.scale) not in CANDIDATES:
        return range_search(weight, type_, scale_rule, tensor_scale, weights)
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds inf or NaN")
    start = microscaling(weight, type_, scale_rule, tensor_scale)
    whole, scales = start.tensor_scale, start.scale
    if str(type_.scale) in CANDIDATES:
        scales = scales.view(torch.uint8)
    counts = None if weights is None else weights.unflatten(0, (scales.shape[-1], -1))
    parts, first = [], 0
    for part in slices(weight.detach(), 1):
        tried = neighbours(scales[first : first + len(part)], str(type_.scale))
        parts.append(best_of(part.float(), tried, type_, whole, counts))
        first += len(part)
    codes, scale = (torch.cat(each) for each in zip(*parts, strict=True))
    return BlockScaled(type_, codes, scale.view(start.scale.dtype), tensor_scale=whole)


def neighbours(scale: torch.Tensor, format: str) -> Iterator[torch.Tensor]:
    """Scales about given ones, nearest first: of those that serve alike, the first is kept. They
    are bytes where the format has 8 bits; parts of given ones in f32."""
    import torch

    if format not in CANDIDATES:
        yield from (scale * part for part in SHRINK)
        return
    for distance in sorted(CANDIDATES[format], key=abs):
        yield (scale.int() + distance).clamp(LEAST[format], GREATEST[format]).to(torch.uint8)


def best_of(
    weight: torch.Tensor,
    candidates: Iterable[torch.Tensor],
    type_: BlockScaledType,
    whole: torch.Tensor | None,
    counts: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [n, K] and bytes of scales [n, K/B] of some rows, each block's the best candidate.

    candidates: bytes of scales [n, K/B]. counts: of each square, [K/B, B], or None.
    """
    import torch

    element = type_.format
    table = values_of(element)
    best, scale, codes = None, None, None
    for tried in candidates:
        blocks = weight.unflatten(-1, (tried.shape[-1], -1))
        step = type_scale(tried, type_, whole).unsqueeze(-1)
        found = encode(blocks / step, element)
        values = found.float() if table is None else table[found.int()]
        square = (values * step - blocks).square_()
        error = (square if counts is None else square.mul_(counts)).sum(-1)
        if best is None or scale is None or codes is None:
            best, scale, codes = error, tried, found
            continue
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, tried, scale)
        codes = torch.where(better.unsqueeze(-1), found, codes)
    assert codes is not None and scale is not None
    return codes.flatten(-2), scale


def type_scale(
    scale: torch.Tensor, type_: BlockScaledType, whole: torch.Tensor | None
) -> torch.Tensor:
    """What codes are multiplied by under scales in bytes, in float32."""
    from gqc.dialects.torch_types import DTYPES

    step = scale.view(DTYPES[type_.scale]).float()
    return step if whole is None else step * whole


def values_of(element: Element) -> torch.Tensor | None:
    """The value of each code; None where codes are values."""
    import torch

    return None if element.is_integer else torch.tensor(element.values)
