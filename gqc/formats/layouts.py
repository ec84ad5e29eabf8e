"""The table of layouts: how the parts of a packed weight lie in memory for a family of kernels.

A weight [N, K] in blocks of 1×B has G = K/B scales a row. `Layout.parts` lists its parts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gqc.formats import packing

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.formats.block_scaled import BlockScaled

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Part:
    """One array of a packed weight.

    kind: `codes`, `scale`, `zero` or `tensor_scale`. word: bits of a word, None for an array of
    floats. plane: what the words hold of codes that are packed. suffix: tells planes apart where
    codes have several.
    """

    kind: str
    word: int | None = None
    plane: packing.Plane | None = None
    suffix: str = ""


def plane_parts(kind: str, bits: int, order: str) -> list[Part]:
    """A part for each plane of codes of a width."""
    planes = packing.planes_of(bits, order)
    suffixes = [str(plane.width) if len(planes) > 1 else "" for plane in planes]
    return [Part(kind, packing.WORD, *p) for p in zip(planes, suffixes, strict=True)]


@dataclass(frozen=True)
class Layout:
    """One row: where the rows and columns of each part lie in memory.

    `place` takes words [N, C] and the lanes to their form in memory, of shape `shape(N, C, lanes)`;
    `take` is its inverse and needs N to drop the padding. `scale_shape`, `place_scale` and
    `take_scale` are the same for scales and zero points [N, G]; integer zero points are packed into
    words along the last axis of that form. A tensor scale is float32 [1] in every layout.
    """

    shape: Callable[[int, int, int], Shape]
    place: Callable[[torch.Tensor, int], torch.Tensor]
    take: Callable[[torch.Tensor, int], torch.Tensor]
    scale_shape: Callable[[int, int, int], Shape]
    place_scale: Callable[[torch.Tensor, int], torch.Tensor]
    take_scale: Callable[[torch.Tensor, int], torch.Tensor]
    k_axis: int
    """Axis of K in a kernel's weight tile. Where it is 1, the weight is the left operand of the dot
    (the one that a GPU's matrix unit can take from registers), and the output tile is transposed.
    """
    exact_dot: bool
    """Whether scaled weights are multiplied in f32, which keeps them exact, and not rounded to the
    type of the activations, as a matrix unit wants it."""
    order: str = "pairs"
    """Order of codes in a word: see `gqc.formats.packing`. In `quads`, words hold what integers are
    above the element's least: unsigned ones, of signed elements too."""

    def stored(self, type_: BlockScaledType) -> str:
        """The element whose codes the words hold."""
        unsigned = self.order == "quads" and type_.format.is_signed_integer
        return f"ui{type_.format.bits}" if unsigned else type_.format.name

    def least(self, type_: BlockScaledType) -> int:
        """What is added to codes in words to give those of the element."""
        return int(type_.format.minimum) if self.stored(type_) != type_.format.name else 0

    def parts(self, type_: BlockScaledType) -> list[Part]:
        """Parts of a packed weight of this type, in order: planes of codes, scales, zero points or
        their planes (in `pairs`), and the scale of the whole tensor."""
        bits, zero = type_.format.bits, [Part("zero")] if type_.has_zero else []
        zeros = plane_parts("zero", bits, "pairs") if type_.mode.integer else zero
        whole = [Part("tensor_scale")] if type_.has_tensor_scale else []
        return [*plane_parts("codes", bits, self.order), Part("scale"), *zeros, *whole]

    def part_shapes(self, type_: BlockScaledType, shape: Sequence[int], lanes: int) -> list[Shape]:
        """Shapes of the parts, in order, of a weight of this type and shape."""
        n, k = shape
        scale = self.scale_shape(n, type_.scale_shape(shape)[1], lanes)

        def shape_of(part: Part) -> Shape:
            if part.kind == "tensor_scale":
                return (1,)
            if part.plane is None:
                return scale
            if part.kind == "codes":
                return self.shape(n, part.plane.words_of(k), lanes)
            return (*scale[:-1], part.plane.words_of(scale[-1]))

        return [shape_of(part) for part in self.parts(type_)]

    def pack(self, weight: BlockScaled, lanes: int) -> list[torch.Tensor]:
        """Parts of a weight [N, K], in order."""
        import torch

        bits, least = weight.type.format.bits, self.least(weight.type)
        # Codes are packed modulo 2^bits, so that what they are above the least may wrap.
        slices = [
            packing.pack(rows - least if least else rows, bits, self.order)
            for rows in packing.slices(weight.codes)
        ]
        parts = [self.place(torch.cat(plane), lanes) for plane in zip(*slices, strict=True)]
        parts.append(self.place_scale(weight.scale, lanes))
        if weight.zero is not None:
            zero = self.place_scale(weight.zero, lanes)
            parts += packing.pack(zero, bits) if weight.type.mode.integer else [zero]
        if weight.tensor_scale is not None:
            parts.append(weight.tensor_scale.reshape(1))
        return [part.contiguous() for part in parts]

    def unpack(
        self, parts: Sequence[torch.Tensor], type_: BlockScaledType, shape: Sequence[int]
    ) -> BlockScaled:
        """The weight [N, K] that `parts` hold."""
        from gqc.formats.block_scaled import BlockScaled

        *parts, whole = parts if type_.has_tensor_scale else (*parts, None)
        n, k = shape
        bits = type_.format.bits
        count = len(packing.planes_of(bits, self.order))
        planes = [self.take(p, n) for p in parts[:count]]
        codes = self.unpack_codes(planes, type_)[:, :k]
        scale, zero = self.take_scale(parts[count], n), None
        if type_.mode.integer:
            zero = self.take_scale(packing.unpack(parts[count + 1 :], bits, False), n)
        elif type_.has_zero:
            zero = self.take_scale(parts[count + 1], n)
        return BlockScaled(type_, codes, scale, zero, None if whole is None else whole.squeeze(0))

    def unpack_codes(self, planes: list[torch.Tensor], type_: BlockScaledType) -> torch.Tensor:
        """Codes of an element that planes [N, words] hold."""
        import torch

        signed, least = type_.format.is_signed_integer, self.least(type_)
        codes = packing.unpack(planes, type_.format.bits, signed and not least, self.order)
        return (codes.to(torch.int16) + least).to(torch.int8) if least else codes


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


LANE_WORDS = Layout(
    shape=lanes_shape,
    place=to_lanes,
    take=from_lanes,
    scale_shape=lanes_shape,
    place_scale=to_lanes,
    take_scale=from_lanes,
    k_axis=0,
    exact_dot=True,
    order="halves",
)

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
        k_axis=1,
        exact_dot=False,
    ),
    # CPUs: L rows side by side, one a SIMD lane.
    "lane_words": LANE_WORDS,
    # The same for dots of bytes: a shift and a mask make four codes of a row that are side by side.
    "lane_quads": replace(LANE_WORDS, order="quads"),
}
