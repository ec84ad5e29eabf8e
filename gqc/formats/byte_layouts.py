"""Layouts of block-scaled floats as matrix units read them: codes in bytes, and scales beside them.

The codes of a tensor [..., K], weight or activation, are bytes [..., K·b/8] in row-major order:
4-bit codes two a byte, the even one in the low half; 8-bit codes one a byte; 6-bit codes one a byte
too, as the E4M3 codes of the same values, since E4M3 has them all and no product of 6-bit codes is
faster than one of 8-bit codes. The scales [R, G], R the product of the leading dimensions, lie by a
row of `SCALE_PLACES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from xdsl.dialects.builtin import DYNAMIC_INDEX

from gqc.formats.elements import ELEMENTS
from gqc.formats.layouts import Part, Shape

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.formats.block_scaled import BlockScaled


STORED = {"f6E2M3FN": "f8E4M3FN", "f6E3M2FN": "f8E4M3FN"}
"""Elements that are stored as codes of another."""

ATOM_ROWS, ATOM_COLUMNS = 128, 4
"""Rows and columns of scales of one tile of `swizzle_32_4_4`, 512 bytes."""


def stored_element(name: str) -> str:
    """The element whose codes hold those of an element in bytes."""
    return STORED.get(name, name)


@dataclass(frozen=True)
class ScalePlace:
    """One row: `place` takes scales [R, G] to their form, of `shape(R, G)`; `take(part, R, G)` is
    its inverse. R may be dynamic in a shape."""

    shape: Callable[[int, int], Shape]
    place: Callable[[torch.Tensor], torch.Tensor]
    take: Callable[[torch.Tensor, int, int], torch.Tensor]


def swizzled_shape(rows: int, blocks: int) -> Shape:
    tiles = DYNAMIC_INDEX if rows == DYNAMIC_INDEX else -(-rows // ATOM_ROWS)
    return tiles, -(-blocks // ATOM_COLUMNS), 2, 256


def swizzle(scale: torch.Tensor) -> torch.Tensor:
    """Tiles of 128×4 scales, of which row r, column c is at byte 16·(r mod 32) + 4·(r div 32) + c.

    NVIDIA, cuBLAS, 1D block scaling factors layout. Scales past the last row or column are byte 0.
    """
    import torch

    rows, blocks = scale.shape
    high, wide, *_ = swizzled_shape(rows, blocks)
    padded = scale.new_zeros(high * ATOM_ROWS, wide * ATOM_COLUMNS, dtype=torch.uint8)
    padded[:rows, :blocks] = scale.view(torch.uint8)
    tiles = padded.view(high, 4, 32, wide, ATOM_COLUMNS).permute(0, 3, 2, 1, 4)
    return tiles.reshape(high, wide, 2, 256).view(scale.dtype)


def unswizzle(part: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
    import torch

    high, wide, *_ = part.shape
    tiles = part.view(torch.uint8).view(high, wide, 32, 4, ATOM_COLUMNS).permute(0, 3, 2, 1, 4)
    padded = tiles.reshape(high * ATOM_ROWS, wide * ATOM_COLUMNS)
    return padded[:rows, :blocks].contiguous().view(part.dtype)


SCALE_PLACES: dict[str, ScalePlace] = {
    "linear": ScalePlace(
        shape=lambda rows, blocks: (rows, blocks),
        place=lambda scale: scale,
        take=lambda part, rows, blocks: part,
    ),
    # Blackwell's tensor memory takes scales as they lie; two lines of 256 bytes are what its
    # copies of tiles can move.
    "swizzle_32_4_4": ScalePlace(shape=swizzled_shape, place=swizzle, take=unswizzle),
}


def sized(shape: Shape, rows: int) -> Shape:
    """A shape whose leading dimension may be dynamic, for an activation of this many rows.

    The dimension counts rows, but of swizzled scales [tiles, ceil(G/4), 2, 256] tiles of them.
    """
    if shape[0] != DYNAMIC_INDEX:
        return shape
    return -(-rows // (ATOM_ROWS if len(shape) == 4 else 1)), *shape[1:]


@dataclass(frozen=True)
class ByteLayout:
    """The layout `bytes` with one place of scales; the methods are those of `layouts.Layout`."""

    scales: ScalePlace

    def parts(self, type_: BlockScaledType) -> list[Part]:
        whole = [Part("tensor_scale")] if type_.has_tensor_scale else []
        return [Part("codes", 8, word=8), Part("scale"), *whole]

    def part_shapes(self, type_: BlockScaledType, shape: Sequence[int], lanes: int) -> list[Shape]:
        """Shapes of the parts, in order, of a tensor of this type and shape."""
        *leading, k = shape
        rows = DYNAMIC_INDEX if DYNAMIC_INDEX in leading else math.prod(leading)
        bits = ELEMENTS[stored_element(type_.format.name)].bits
        blocks = k // type_.block_of(shape)[-1]
        shapes = [(*leading, k * bits // 8), self.scales.shape(rows, blocks), (1,)]
        return shapes[: len(self.parts(type_))]

    def pack(self, tensor: BlockScaled, lanes: int) -> list[torch.Tensor]:
        """Parts of a tensor [..., K], in order."""
        import torch

        codes = as_stored(tensor.codes, tensor.type)
        if tensor.type.format.bits == 4:
            codes = codes[..., 0::2] | codes[..., 1::2] << 4
        scale = self.scales.place(tensor.scale.flatten(0, -2))
        whole = [] if tensor.tensor_scale is None else [tensor.tensor_scale.reshape(1)]
        return [part.contiguous() for part in (codes.view(torch.int8), scale, *whole)]

    def unpack(
        self, parts: Sequence[torch.Tensor], type_: BlockScaledType, shape: Sequence[int]
    ) -> BlockScaled:
        """The tensor that `parts` hold, of a shape whose dynamic dimensions are what codes say."""
        import torch

        from gqc.formats.block_scaled import BlockScaled

        codes, scale, *whole = parts
        codes = codes.view(torch.uint8)
        if type_.format.bits == 4:
            codes = torch.stack([codes & 15, codes >> 4], -1).flatten(-2)
        codes = from_stored(codes, type_)
        blocks = shape[-1] // type_.block_of(shape)[-1]
        scale = self.scales.take(scale, codes.shape[:-1].numel(), blocks)
        scale = scale.reshape(*codes.shape[:-1], blocks)
        return BlockScaled(type_, codes, scale, None, whole[0].squeeze(0) if whole else None)


def as_stored(codes: torch.Tensor, type_: BlockScaledType) -> torch.Tensor:
    """Codes of the element that is stored, uint8, of the same values."""
    import torch

    name = type_.format.name
    if name not in STORED:
        return codes.to(torch.uint8)
    return recoding(name)[codes.long()]


def from_stored(codes: torch.Tensor, type_: BlockScaledType) -> torch.Tensor:
    """`as_stored` undone."""
    import torch

    name = type_.format.name
    if name not in STORED:
        return codes
    table = torch.zeros(256, dtype=torch.uint8)
    table[recoding(name).long()] = torch.arange(1 << type_.format.bits, dtype=torch.uint8)
    return table[codes.long()]


def recoding(name: str) -> torch.Tensor:
    """For each code of an element, the stored element's code of the same value."""
    import torch

    values = {value: code for code, value in enumerate(ELEMENTS[STORED[name]].values)}
    codes = [values[value] for value in ELEMENTS[name].values]
    sign = 1 << ELEMENTS[name].bits - 1
    codes[sign] = 0x80  # -0.0 == 0.0, but they have codes of their own
    codes[0] = 0
    return torch.tensor(codes, dtype=torch.uint8)
