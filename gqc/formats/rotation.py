"""Block Hadamard rotation: what spreads an outlier over the elements that share its scale.

Sylvester's construction: H₁ = [1], H₂ₙ = [[Hₙ, Hₙ], [Hₙ, −Hₙ]], over √n to be orthogonal. It is
symmetric, so its own inverse (Ashkboos et al., QuaRot, arXiv 2404.00456; in blocks as large as
those that share a scale: Egiazarian et al., MR-GPTQ, arXiv 2509.23202).
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@cache
def hadamard(size: int) -> torch.Tensor:
    """The orthogonal Hadamard matrix [size, size], float64. Raises ValueError on no power of 2."""
    import torch

    if size < 1 or size & (size - 1):
        raise ValueError(f"a Hadamard matrix of {size} rows: a power of two is expected")
    matrix, two = torch.ones(1, 1, dtype=torch.float64), torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    while len(matrix) < size:
        matrix = torch.kron(two.double(), matrix)
    return matrix / size**0.5


def rotate(x: torch.Tensor, block: int) -> torch.Tensor:
    """x [..., K] with each `block` elements of K rotated, in x's dtype; twice, it is x again.

    Raises ValueError if blocks do not divide K.
    """
    if x.shape[-1] % block:
        raise ValueError(f"blocks of {block} do not divide the last dimension of {list(x.shape)}")
    matrix = hadamard(block).to(device=x.device, dtype=x.dtype)
    return (x.unflatten(-1, (-1, block)) @ matrix).flatten(-2)
