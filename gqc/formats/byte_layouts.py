"""Layouts of block-scaled floats as matrix units read them: codes in bytes, and scales beside them.

The codes of a tensor [..., K], weight or activation, are bytes [..., K·b/8] in row-major order:
4-bit codes two a byte, the even one in the low half; 8-bit codes one a byte; 6-bit codes one a byte
too, as the E4M3 codes of the same values, since E4M3 has them all and no product of 6-bit codes is
faster than one of 8-bit codes. The scales [R, G], R the product of the leading dimensions, lie by a
row of `SCALE_PLACES`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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


def stored_element(name: str) -> str:
    """The element whose codes hold those of an element in bytes."""
    return STORED.get(name, name)


@dataclass(frozen=True)
class ScalePlace:
    """One row: scales [R, G] in tiles that lie after each other, rows of tiles after each other.

    rows, columns: a scale's row and column in its tile, split into digits with these extents, the
    highest first: (4, 32) is row div 32, row mod 32. order: the digits, rows' before columns',
    as they count the bytes of a tile, the slowest first. stored: the shape a tile's bytes have in
    arrays. Without digits a tile is one scale. Scales past the last row or column are byte 0.
    sums: whether a part of its own has the sum of each block's codes, in int32.
    """

    rows: tuple[int, ...] = ()
    columns: tuple[int, ...] = ()
    order: tuple[int, ...] = ()
    stored: tuple[int, ...] = ()
    sums: bool = False

    @property
    def tile(self) -> tuple[int, int]:
        """Rows and columns of a tile."""
        return math.prod(self.rows), math.prod(self.columns)

    @property
    def digits(self) -> tuple[int, ...]:
        """Extents of the digits in the order of bytes."""
        return tuple([(*self.rows, *self.columns)[i] for i in self.order])

    @property
    def there(self) -> tuple[int, ...]:
        """The permutation of [tiles, *rows, tiles, *columns] to [tiles, tiles, *digits]."""
        beyond = len(self.rows)
        return 0, 1 + beyond, *[1 + i + (i >= beyond) for i in self.order]

    @property
    def back(self) -> tuple[int, ...]:
        """The permutation of [tiles, tiles, *digits] to [tiles, *rows, tiles, *columns]."""
        return tuple([self.there.index(i) for i in range(len(self.there))])

    def split(self, high: int, wide: int) -> tuple[int, ...]:
        """Extents [tiles, *rows, tiles, *columns] of so many tiles."""
        return high, *self.rows, wide, *self.columns

    def shape(self, rows: int, blocks: int) -> Shape:
        """The shape of the array of R×G scales; R may be dynamic."""
        height, width = self.tile
        high = DYNAMIC_INDEX if rows == DYNAMIC_INDEX else -(-rows // height)
        return high, -(-blocks // width), *self.stored

    def place(self, scale: torch.Tensor) -> torch.Tensor:
        """Scales [R, G], of 8 bits unless they are linear, at their places."""
        import torch

        if not self.digits:
            return scale
        rows, blocks = scale.shape
        shape, (height, width) = self.shape(rows, blocks), self.tile
        high, wide, *_ = shape
        padded = scale.new_zeros(high * height, wide * width, dtype=torch.uint8)
        padded[:rows, :blocks] = scale.view(torch.uint8)
        tiles = padded.view(self.split(high, wide)).permute(self.there)
        return tiles.reshape(shape).view(scale.dtype)

    def take(self, part: torch.Tensor, rows: int, blocks: int) -> torch.Tensor:
        """Scales [R, G] from their places."""
        import torch

        if not self.digits:
            return part
        (high, wide, *_), (height, width) = part.shape, self.tile
        tiles = part.view(torch.uint8).reshape(high, wide, *self.digits).permute(self.back)
        padded = tiles.reshape(high * height, wide * width)
        return padded[:rows, :blocks].contiguous().view(part.dtype)


SCALE_PLACES: dict[str, ScalePlace] = {
    "linear": ScalePlace(),
    # For dots of integers that differ from those wanted by a multiple of the sum.
    "summed": ScalePlace(sums=True),
    # NVIDIA's layout of 1D block scaling factors (cuBLAS): of 128×4 scales, row r, column c at byte
    # 16·(r mod 32) + 4·(r div 32) + c. Blackwell's tensor memory takes scales as they lie; two
    # lines of 256 bytes are what its copies of tiles can move.
    "swizzle_32_4_4": ScalePlace((4, 32), (4,), order=(1, 0, 2), stored=(2, 256)),
    # AMD's for 16×16×128 on CDNA4 (AITER's e8m0_shuffle): of 32×8 scales, row r, column c at byte
    # 64·(c mod 4) + 4·(r mod 16) + 2·(c div 4) + r div 16. A lane finds the scales of four
    # instructions in one word.
    "shuffle_32_8": ScalePlace((2, 16), (2, 4), order=(3, 1, 2, 0), stored=(256,)),
}

TILE_ROWS = {2 + len(place.stored): place.tile[0] for place in SCALE_PLACES.values()}
"""Rows of a tile by the rank of an array, which tells places apart."""


def sized(shape: Shape, rows: int) -> Shape:
    """The shape of an array for an activation of this many rows: where its leading dimension is
    dynamic, it counts rows, or tiles of scales."""
    if shape[0] != DYNAMIC_INDEX:
        return shape
    return -(-rows // TILE_ROWS[len(shape)]), *shape[1:]


@dataclass(frozen=True)
class ByteLayout:
    """The layout `bytes` with one place of scales; the methods are those of `layouts.Layout`."""

    scales: ScalePlace

    def parts(self, type_: BlockScaledType) -> list[Part]:
        whole = [Part("tensor_scale")] if type_.has_tensor_scale else []
        sums = [Part("sum", word=32)] if self.scales.sums else []
        return [Part("codes", word=8), Part("scale"), *sums, *whole]

    def part_shapes(self, type_: BlockScaledType, shape: Sequence[int], lanes: int) -> list[Shape]:
        """Shapes of the parts, in order, of a tensor of this type and shape."""
        *leading, k = shape
        rows = DYNAMIC_INDEX if DYNAMIC_INDEX in leading else math.prod(leading)
        bits = ELEMENTS[stored_element(type_.format.name)].bits
        blocks = k // type_.block_of(shape)[-1]
        scale = self.scales.shape(rows, blocks)
        shapes = {"codes": (*leading, k * bits // 8), "tensor_scale": (1,)}
        return [shapes.get(part.kind, scale) for part in self.parts(type_)]

    def pack(self, tensor: BlockScaled, lanes: int) -> list[torch.Tensor]:
        """Parts of a tensor [..., K], in order."""
        import torch

        codes = as_stored(tensor.codes, tensor.type)
        if tensor.type.format.bits == 4:
            codes = codes[..., 0::2] | codes[..., 1::2] << 4
        scale = self.scales.place(tensor.scale.flatten(0, -2))
        sums = []
        if self.scales.sums:
            blocks = tensor.blocked(tensor.codes.to(torch.int32))
            sums = [blocks.sum((1, 3), dtype=torch.int32).reshape(scale.shape)]
        whole = [] if tensor.tensor_scale is None else [tensor.tensor_scale.reshape(1)]
        return [part.contiguous() for part in (codes.view(torch.int8), scale, *sums, *whole)]

    def unpack(
        self, parts: Sequence[torch.Tensor], type_: BlockScaledType, shape: Sequence[int]
    ) -> BlockScaled:
        """The tensor that `parts` hold, of a shape whose dynamic dimensions are what codes say."""
        import torch

        from gqc.formats.block_scaled import BlockScaled

        codes, scale, *rest = parts
        whole = rest[self.scales.sums :]
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
        return codes.view(torch.int8) if type_.format.is_signed_integer else codes
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
