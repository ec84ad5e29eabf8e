"""What reading a parameter gives, beside plain tensors and block-scaled ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.rotation import rotate

if TYPE_CHECKING:
    pass


@dataclass
class Permuted:
    """A weight whose blocks are of elements that lie apart in the model's own weight.

    weight: [N, K], the model's with its columns (dim 1; rows where dim is 0) taken in `order`, an
    int64 permutation: `weight = model's[:, order]`, so `x @ model's.T = x[:, order] @ weight.T`.
    """

    weight: BlockScaled
    order: torch.Tensor
    dim: int = 1

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The model's weight [N, K]."""
        return self.weight.dequantize(dtype).index_select(self.dim, self.order.argsort())


@dataclass
class Prescaled:
    """A weight for inputs that are multiplied by `factor` [K] first, channel by channel (AWQ)."""

    weight: BlockScaled | Rotated
    factor: torch.Tensor

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The weight [N, K] of the layer as a whole: `weight · factor`."""
        values = self.weight.dequantize(dtype)
        return values * self.factor.to(values.dtype)


@dataclass
class Transposed:
    """Weights of experts [E, N, K] that the model has as [E, K, N]."""

    weight: BlockScaled | Prescaled | Rotated

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The model's weights [E, K, N]."""
        return self.weight.dequantize(dtype).transpose(-1, -2)


@dataclass
class Rotated:
    """A weight for inputs that are rotated first: each `block` elements of K by a Hadamard matrix.

    weight: [N, K], the model's times the same rotation, which is orthogonal and its own inverse:
    `x @ model's.T = rotate(x, block) @ weight.T` (`gqc.formats.rotation`).
    """

    weight: BlockScaled
    block: int

    def dequantize(self, dtype: torch.dtype | None = None) -> torch.Tensor:
        """The model's weight [N, K]."""
        return rotate(self.weight.dequantize(dtype), self.block)


Weight = torch.Tensor | BlockScaled | Permuted | Prescaled | Transposed | Rotated


def dense(weight: Weight, dtype: torch.dtype | None = None) -> torch.Tensor:
    """The parameter that the dense model has, computed in `dtype` (float32 unless told)."""
    if isinstance(weight, torch.Tensor):
        return weight.to(dtype or torch.float32)
    return weight.dequantize(dtype)


def block_scaled(
    element: str,
    block: tuple[int | None, ...],
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None = None,
    mode: str = "none",
    tensor_scale: torch.Tensor | None = None,
) -> BlockScaled:
    """A block-scaled tensor from its parts, their formats told by their dtypes.

    block: extents, None for a whole dimension. mode: of the zero point, a row of `ZERO_MODES`.
    codes are bit patterns of `element`, whatever their dtype; those of integers are numbers.
    Raises GqcError if blocks do not divide the tensor, or scales are not one for each.
    """
    from gqc.dialects.text import parse_block_scaled
    from gqc.dialects.torch_types import ELEMENT_TYPES

    extents = "x".join("?" if extent is None else str(extent) for extent in block)
    text = f"{extents} : {ELEMENT_TYPES[scale.dtype]} : {element}"
    if zero is not None:
        text += f", zero = {element if mode == 'quantized' else ELEMENT_TYPES[zero.dtype]}"
        text += f", zero_mode = {mode}"
    if tensor_scale is not None:
        text += ", global = f32"
    type_ = parse_block_scaled(text)
    sizes = type_.block_of(codes.shape)
    if any(n % b for n, b in zip(codes.shape, sizes, strict=True)):
        raise GqcError(f"blocks of {list(sizes)} do not divide a weight {list(codes.shape)}")
    expected = type_.scale_shape(codes.shape)
    for what, part in (("scales", scale), ("zero points", zero)):
        if part is not None and tuple(part.shape) != expected:
            raise GqcError(f"{what} {list(part.shape)}, expected {list(expected)}")
    return BlockScaled(type_, codes, scale, zero, tensor_scale)
