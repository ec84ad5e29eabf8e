"""A block-scaled tensor on torch: codes, scales, zero points."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gqc.formats import packing

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType


@dataclass
class BlockScaled:
    """A quantized tensor, a weight [N, K] or activation [..., K], in blocks; G blocks a row.

    codes: [N, K], one a byte: int8 or uint8 values of integers, uint8 bit patterns of floats.
    scale: [N, G], and zero: [N, G] or None, in the type's formats (an integer zero is uint8).
    tensor_scale: a scalar float32 or None.
    """

    type: BlockScaledType
    codes: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor | None = None
    tensor_scale: torch.Tensor | None = None

    def values(self, dtype: torch.dtype) -> torch.Tensor:
        """What the codes stand for before scaling, [N, K]."""
        import torch

        if self.type.format.is_integer:
            return self.codes.to(dtype)
        table = torch.tensor(self.type.format.values, dtype=dtype, device=self.codes.device)
        return table[self.codes.long()]

    def blocked(self, values: torch.Tensor) -> torch.Tensor:
        """A tensor [N, K] as [N/A, A, K/B, B], for blocks of A×B.

        Leading dimensions, which blocks have no extent in, count as rows.
        """
        *_, rows, columns = (1, *self.type.block_of(values.shape))
        return values.reshape(-1, rows, values.shape[-1] // columns, columns)

    def index_select(self, dim: int, index: torch.Tensor) -> BlockScaled:
        """Its elements at `index`, int64, along a dimension in which blocks have the extent 1.

        Raises ValueError along another: blocks would be taken apart.
        """
        if self.type.block_of(self.codes.shape)[dim] != 1:
            raise ValueError(f"blocks of {self.type} extend along dimension {dim}")
        scale, zero = self.scale.index_select(dim, index), self.zero
        zero = None if zero is None else zero.index_select(dim, index)
        codes = self.codes.index_select(dim, index)
        return BlockScaled(self.type, codes, scale, zero, self.tensor_scale)

    def slices(self) -> Iterator[tuple[slice, BlockScaled]]:
        """Its rows a slice at a time, for work whose temporaries are wider than codes."""
        rows = self.type.block_of(self.codes.shape)[0]
        start = 0
        for codes in packing.slices(self.codes, rows):
            stop = start + len(codes)
            blocks = slice(start // rows, stop // rows)
            zero = None if self.zero is None else self.zero[blocks]
            yield (
                slice(start, stop),
                BlockScaled(self.type, codes, self.scale[blocks], zero, self.tensor_scale),
            )
            start = stop

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The tensor [N, K] it stands for, computed in `dtype` (float32 unless told)."""
        import torch

        dtype = dtype or torch.float32
        q, s = self.blocked(self.values(dtype)), per_block(self.scale).to(dtype)
        if self.tensor_scale is not None:
            s = s * self.tensor_scale.to(dtype)
        z = per_block(self.zero).to(dtype) if self.zero is not None else None
        return self.type.mode.dequantize(q, s, z).reshape(self.codes.shape)


def per_block(part: torch.Tensor) -> torch.Tensor:
    """Scales or zero points [N/A, K/B] as [N/A, 1, K/B, 1], to go with `BlockScaled.blocked`."""
    return part.reshape(-1, 1, part.shape[-1], 1)


def repeated(part: torch.Tensor, times: int, dim: int) -> torch.Tensor:
    """Scales or zero points, each `times` times in a row along a dimension.

    Torch repeats no floats of 8 bits: they are bytes.
    """
    import torch

    bytes_ = part.view(torch.uint8) if part.dtype.itemsize == 1 else part
    return bytes_.repeat_interleave(times, dim).view(part.dtype)


def sqnr(weight: torch.Tensor, quantized: BlockScaled) -> float:
    """10·log10(Σw² / Σ(w − ŵ)²) in dB, ŵ computed in float32; inf for an exact representation."""
    import torch

    signal = noise = torch.zeros((), dtype=torch.float64)
    for rows, part in quantized.slices():
        exact = weight[rows].detach()
        signal = signal + exact.double().square_().sum()
        noise = noise + part.dequantize().sub_(exact).double().square_().sum()
    return (10 * torch.log10(signal / noise)).item() if noise else math.inf
