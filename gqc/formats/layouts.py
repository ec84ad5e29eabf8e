"""The table of layouts: how the parts of a packed weight lie in memory for a family of kernels.

A weight [N, K] in blocks of 1×B has G = K/B scales a row. Parts come in the order planes of words,
scale, zero point; an integer zero point is itself packed into planes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gqc.formats import packing

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.formats.block_scaled import BlockScaled

Shape = tuple[int, ...]


@dataclass(frozen=True)
class PartShapes:
    """Shapes of the parts of one packed weight; `zero` has several for an integer zero point."""

    planes: list[Shape]
    scale: Shape
    zero: list[Shape]


@dataclass(frozen=True)
class Layout:
    """One row: the axes of rows and columns of a part, to memory and back.

    `place` takes a part [N, C] (C words or blocks) and the lanes to its form in memory;
    `take` is its inverse and needs N to drop the padding.
    `shape` is the shape that `place` gives. `zeros_along_rows` is the form of a packed zero point.
    """

    shape: Callable[[int, int, int], Shape]
    place: Callable[[torch.Tensor, int], torch.Tensor]
    take: Callable[[torch.Tensor, int], torch.Tensor]
    scale_shape: Callable[[int, int, int], Shape]
    place_scale: Callable[[torch.Tensor, int], torch.Tensor]
    take_scale: Callable[[torch.Tensor, int], torch.Tensor]

    def part_shapes(self, type_: BlockScaledType, shape: Sequence[int], lanes: int) -> PartShapes:
        """Shapes of all parts of a weight of this type and shape."""
        n, k = shape
        blocks = type_.scale_shape(shape)[1]
        bits = type_.format.bits
        scale = self.scale_shape(n, blocks, lanes)
        zero = [scale]
        if type_.zero_mode.data == "quantized":
            zero = [(*scale[:-1], packing.words_of(scale[-1], w)) for w in packing.planes_of(bits)]
        return PartShapes(
            planes=[self.shape(n, packing.words_of(k, w), lanes) for w in packing.planes_of(bits)],
            scale=scale,
            zero=zero if type_.has_zero else [],
        )

    def pack(self, weight: BlockScaled, lanes: int) -> list[torch.Tensor]:
        """Parts of a weight [N, K]: planes, scale, zero point."""
        bits = weight.type.format.bits
        parts = [self.place(plane, lanes) for plane in packing.pack(weight.codes, bits)]
        parts.append(self.place_scale(weight.scale, lanes))
        if weight.zero is not None:
            zero = self.place_scale(weight.zero, lanes)
            quantized = weight.type.zero_mode.data == "quantized"
            parts += packing.pack(zero, bits) if quantized else [zero]
        return [part.contiguous() for part in parts]

    def unpack(
        self, parts: Sequence[torch.Tensor], type_: BlockScaledType, shape: Sequence[int]
    ) -> BlockScaled:
        """The weight [N, K] that `parts` hold."""
        from gqc.formats.block_scaled import BlockScaled

        n, k = shape
        bits, count = type_.format.bits, len(packing.planes_of(type_.format.bits))
        planes = [self.take(p, n) for p in parts[:count]]
        codes = packing.unpack(planes, bits, type_.format.is_signed_integer)[:, :k]
        scale, zero = self.take_scale(parts[count], n), None
        if type_.zero_mode.data == "quantized":
            zero = self.take_scale(packing.unpack(list(parts[count + 1 :]), bits, False), n)
        elif type_.has_zero:
            zero = self.take_scale(parts[count + 1], n)
        return BlockScaled(type_, codes, scale, zero)


def to_lanes(part: torch.Tensor, lanes: int) -> torch.Tensor:
    """[N, C] to [ceil(N/L), C, L]: rows become lanes, rows past N are zero."""
    padded = part.new_zeros(part.shape[0] + -part.shape[0] % lanes, part.shape[1])
    padded[: part.shape[0]] = part
    return padded.unflatten(0, (-1, lanes)).transpose(1, 2)


def from_lanes(part: torch.Tensor, rows: int) -> torch.Tensor:
    """[ceil(N/L), C, L] to [N, C]."""
    return part.transpose(1, 2).flatten(0, 1)[:rows]


def lanes_shape(n: int, columns: int, lanes: int) -> Shape:
    return -(-n // lanes), columns, lanes


LAYOUTS: dict[str, Layout] = {
    # GPUs: a row's words side by side, so that a thread loads neighbouring words of one row; scales
    # with rows side by side, so that a warp's loads coalesce.
    "k_words": Layout(
        shape=lambda n, words, lanes: (n, words),
        place=lambda part, lanes: part,
        take=lambda part, rows: part,
        scale_shape=lambda n, blocks, lanes: (blocks, n),
        place_scale=lambda part, lanes: part.t(),
        take_scale=lambda part, rows: part.t()[:rows],
    ),
    # CPUs: L rows side by side, one a SIMD lane.
    "lane_words": Layout(
        shape=lanes_shape,
        place=to_lanes,
        take=from_lanes,
        scale_shape=lanes_shape,
        place_scale=to_lanes,
        take_scale=from_lanes,
    ),
}
