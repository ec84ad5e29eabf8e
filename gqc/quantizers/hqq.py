"""HQQ: zero points under which a weight's errors are few rather than small.

Badri and Shaji, "Half-Quadratic Quantization of Large Machine Learning Models" (2023): with the
scales fixed, minimize over zero points the sum of |w − ŵ|^p, p < 1, in turns of two closed forms. A
proximal step shrinks errors e to sign(e) · max(|e| − |e|^(p−1) / β, 0), and the zero point becomes
the mean of those that the codes have for the weights without them; β grows. Each block keeps the
best zero point that it had, as its format holds it, so it never errs more than it began.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled, per_block
from gqc.formats.packing import slices
from gqc.quantizers.rtn import rtn

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.quantizers.statistics import Statistics

P = 0.7
BETA, KAPPA = 10.0, 1.01
TURNS = 20
"""All as the authors have them."""


def hqq(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a weight [N, K] to integers under float zero points.

    Scales are those of round-to-nearest under `scale_rule`. Raises ValueError on a type without
    float zero points, and as round-to-nearest does.
    """
    import torch

    if not type_.has_zero or type_.mode.integer:
        raise ValueError("HQQ moves float zero points, which the type does not have")
    start = rtn(weight, type_, scale_rule, tensor_scale)
    rows = type_.block_of(weight.shape)[0]
    parts = [
        refine(part.float(), given)
        for part, (_, given) in zip(slices(weight.detach(), rows), start.slices(), strict=True)
    ]
    codes, zero = (torch.cat(part) for part in zip(*parts, strict=True))
    return BlockScaled(type_, codes, start.scale, zero)


def refine(weight: torch.Tensor, start: BlockScaled) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and zero points of some rows of a weight, better than those it starts from."""
    import torch

    element, mode = start.type.format, start.type.mode
    assert start.zero is not None and mode.zero is not None
    blocks, dtype = start.blocked(weight), start.zero.dtype  # [N/A, A, K/B, B]
    scale, zero = per_block(start.scale).float(), per_block(start.zero)
    best, least = zero, torch.full(zero.shape, torch.inf)

    def codes_under(zero: torch.Tensor) -> torch.Tensor:
        codes = mode.code(blocks, scale, zero.float())
        return codes.round_().clamp_(element.minimum, element.maximum)

    for turn in range(TURNS + 1):
        codes = codes_under(zero)
        error = blocks - mode.dequantize(codes, scale, zero.float())
        size = error.abs()
        loss = size.pow(P).sum((1, 3), keepdim=True)
        better = loss < least
        best, least = torch.where(better, zero, best), torch.where(better, loss, least)
        shrunk = (size - size.pow(P - 1) / (BETA * KAPPA**turn)).clamp_(min=0).copysign_(error)
        exact = mode.zero(blocks - shrunk, scale, codes).mean((1, 3), keepdim=True)
        zero = exact.to(dtype)
    codes = codes_under(best).reshape(weight.shape)
    codes = codes.to(torch.int8 if element.signed else torch.uint8)
    return codes, best.reshape(start.zero.shape)
