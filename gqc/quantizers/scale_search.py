"""Scale search: of the scales near a rule's, each block takes the one under which it errs least.

The rules of `gqc.quantizers.microscaling` look at a block's greatest element alone. A scale below
theirs clips it and serves the others better; one above brings 4 bits' sparse upper codes elsewhere
(mapping the greatest to 4 in place of 6 is what "Four Over Six", arXiv 2512.02010, chooses from).
The error is the sum of squares over the block, of values as they are dequantized, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import Element
from gqc.formats.microscaling import encode
from gqc.formats.packing import slices
from gqc.quantizers.microscaling import microscaling

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType

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
) -> BlockScaled:
    """Quantize a weight [N, K] under searched E8M0 or E4M3 scales.

    `scale_rule` and `tensor_scale` are microscaling's, whose scales are in the midst of what is
    searched, and kept where no other is better. Raises ValueError as it does, and where the weight
    holds inf or NaN.
    """
    import torch

    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds inf or NaN")
    start = microscaling(weight, type_, scale_rule, tensor_scale)
    whole = start.tensor_scale
    scales = start.scale.view(torch.uint8)
    rows = slices(weight.detach(), 1)
    parts, first = [], 0
    for part in rows:
        given = scales[first : first + len(part)]
        parts.append(search_rows(part.float(), given, type_, whole))
        first += len(part)
    codes, scale = (torch.cat(each) for each in zip(*parts, strict=True))
    return BlockScaled(type_, codes, scale.view(start.scale.dtype), tensor_scale=whole)


def search_rows(
    weight: torch.Tensor, start: torch.Tensor, type_: BlockScaledType, whole: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes [n, K] and bytes of scales [n, K/B] of some rows, from the bytes of a rule's scales."""
    import torch

    name, element = str(type_.scale), type_.format
    blocks = weight.unflatten(-1, (start.shape[-1], -1))
    table = values_of(element)
    best = torch.full_like(start, torch.inf, dtype=torch.float32)
    scale, codes = start.clone(), None
    # Nearest first: of scales that serve alike, the rule's is kept.
    for distance in sorted(CANDIDATES[name], key=abs):
        tried = (start.int() + distance).clamp(LEAST[name], GREATEST[name]).to(torch.uint8)
        step = type_scale(tried, type_, whole).unsqueeze(-1)
        found = encode(blocks / step, element)
        values = found.float() if table is None else table[found.int()]
        error = (values * step - blocks).square_().sum(-1)
        better = error < best
        best = torch.where(better, error, best)
        scale = torch.where(better, tried, scale)
        codes = found if codes is None else torch.where(better.unsqueeze(-1), found, codes)
    assert codes is not None
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
