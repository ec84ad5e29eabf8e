"""Range search: integers under the scale and zero point by which each block errs least.

Of ranges that clip a block ever more (the clipping of AWQ, arXiv 2306.00978, section 3.2 and its
code), each is followed by the least-squares line through codes and weights, as llama.cpp fits its
k-quants; the best is then refined, codes and lines in turns. Codes with a sign have one more below
0 than above, so scales of both signs are tried, as llama.cpp's Q4_0 has them: under a negative one
that code serves a block's greatest weight. The error is the sum of squares over the block, of
values as they are dequantized, in float32.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled, per_block
from gqc.quantizers.rtn import SCALE_RULES, codes_under, rtn

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType

SHRINK = tuple(1 - 0.065 * i for i in range(8))
"""Parts of a block's range that are tried, about 0: down to 0.55 of it."""
TURNS = 3
"""Of refinement."""
SLICE = 1 << 17
"""Elements to work on at once: what a core's cache holds with its temporaries."""


def range_search(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None,
    weights: torch.Tensor | None,
) -> BlockScaled:
    """Quantize a weight [N, K] to integers under searched ranges.

    The search starts from round-to-nearest under `scale_rule`, keeps it where nothing is better,
    and raises ValueError as it does. weights: what squares of errors count by column, [K].
    """
    start = rtn(weight, type_, scale_rule, tensor_scale)
    rows, columns = type_.block_of(weight.shape)
    counts = None if weights is None else weights.reshape(1, 1, -1, columns)
    step = rows * max(1, SLICE // (rows * weight.shape[1]))
    for first in range(0, len(weight), step):
        part, blocks = slice(first, first + step), slice(first // rows, (first + step) // rows)
        found = Search(start.blocked(weight.detach()[part].float()), type_, counts)
        found.consider(start.scale[blocks], None if start.zero is None else start.zero[blocks])
        found.run(scale_rule)
        codes = codes_under(found.blocks, found.scale, found.zero, type_)
        start.codes[part] = codes.reshape(start.codes[part].shape).to(start.codes.dtype)
        start.scale[blocks] = found.scale
        if start.zero is not None and found.zero is not None:
            start.zero[blocks] = found.zero
    return start


class Search:
    """The best scale and zero point that were found for blocks [N/A, A, K/B, B]."""

    scale: torch.Tensor
    zero: torch.Tensor | None
    error: torch.Tensor

    def __init__(self, blocks: torch.Tensor, type_: BlockScaledType, counts: torch.Tensor | None):
        self.blocks, self.type, self.counts = blocks, type_, counts

    def run(self, scale_rule: str) -> None:
        """Try all that there is to try, from what was considered first."""
        for scale, zero in self.starts(scale_rule):
            for part in SHRINK:
                self.consider_line(self.consider(*self.shrunk(scale, zero, part)))
        for _ in range(TURNS):
            self.consider_line(codes_under(self.blocks, self.scale, self.zero, self.type))

    def starts(self, scale_rule: str) -> list[tuple[torch.Tensor, torch.Tensor | None]]:
        """Scales and zero points of whole ranges: what was considered first, and the rule's for
        the block's mirror image, negated, where codes reach less far above 0 than below."""
        first, element = (self.scale.float(), self.zero), self.type.format
        if self.zero is not None or element.maximum >= -element.minimum:
            return [first]
        low, high = self.blocks.amin((1, 3)), self.blocks.amax((1, 3))
        return [first, (-SCALE_RULES[scale_rule](-high, -low, element.bits), None)]

    def shrunk(
        self, scale: torch.Tensor, zero: torch.Tensor | None, part: float
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The scale and zero point of a part of a range."""
        if zero is not None and not self.type.mode.shifts_codes:
            zero = zero.float() * part  # the least weight that has a code; it shrinks too
        return scale * part, zero

    def consider_line(self, codes: torch.Tensor) -> None:
        """Consider the scale and zero point that serve these codes best."""
        zero = self.crossing(codes)
        self.consider(self.slope(codes, zero), zero)

    def consider(self, scale: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """Codes under a scale and zero point, in their formats; kept where they are the best."""
        import torch

        scale, zero = self.formatted(scale, zero)
        codes = codes_under(self.blocks, scale, zero, self.type)
        s, z = per_block(scale).float(), None if zero is None else per_block(zero).float()
        square = (self.type.mode.dequantize(codes, s, z) - self.blocks).square_()
        error = self.total(square).reshape(scale.shape)
        if not hasattr(self, "error"):
            self.scale, self.zero, self.error = scale, zero, error
            return codes
        better = error < self.error  # not where a scale is no number
        self.error = torch.where(better, error, self.error)
        self.scale = torch.where(better, scale, self.scale)
        if zero is not None and self.zero is not None:
            self.zero = torch.where(better, zero, self.zero)
        return codes

    def formatted(
        self, scale: torch.Tensor, zero: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """A scale and zero point as the type holds them; NaN for a scale of 0, and for a negative
        one beside a zero point."""
        import torch

        from gqc.dialects.torch_types import DTYPES

        scale = scale.to(DTYPES[self.type.scale])  # which may make 0 of it
        scale = torch.where(scale != 0 if zero is None else scale > 0, scale, torch.nan)
        if zero is None:
            return scale, None
        if self.type.mode.integer:
            element = self.type.format
            zero = zero.float().nan_to_num_().round_().clamp_(element.minimum, element.maximum)
            return scale, zero.to(torch.uint8)
        return scale, zero.to(DTYPES[self.type.zero])

    def crossing(self, codes: torch.Tensor) -> torch.Tensor | None:
        """The zero point, in its format, of the least-squares line through codes and weights."""
        mode, w = self.type.mode, self.blocks
        if mode.zero is None:
            return None
        count = self.total(w.new_ones(()).expand_as(w))
        q0, w0 = self.total(codes) / count, self.total(w) / count
        q = codes - q0
        line = self.total(q * (w - w0)) / self.total(q * q)
        zero = mode.zero(w0 - line * q0, line, 0)
        return self.formatted(self.scale, zero.reshape(self.scale.shape))[1]

    def slope(self, codes: torch.Tensor, zero: torch.Tensor | None) -> torch.Tensor:
        """The scale of least squares for codes under a zero point, in float32."""
        mode, z = self.type.mode, None if zero is None else per_block(zero).float()
        offset = mode.dequantize(codes, 0, z)
        unit = mode.dequantize(codes, 1, z) - offset
        scale = self.total(unit * (self.blocks - offset)) / self.total(unit * unit)
        return scale.reshape(self.scale.shape)

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over each block [N/A, 1, K/B, 1], by what its columns count."""
        if self.counts is not None:
            values = values * self.counts
        return values.sum((1, 3), keepdim=True)
