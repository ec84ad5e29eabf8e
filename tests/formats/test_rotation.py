"""Block Hadamard rotation: orthogonal, its own inverse, and only within blocks."""

from __future__ import annotations

import pytest
import torch

from gqc.formats.rotation import hadamard, rotate


@pytest.mark.parametrize("size", [1, 2, 16, 32, 128])
def test_hadamard_matrix_is_orthogonal_and_symmetric(size: int) -> None:
    matrix = hadamard(size)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(size, dtype=torch.float64))
    assert torch.equal(matrix, matrix.T)
    torch.testing.assert_close(matrix.abs(), torch.full_like(matrix, size**-0.5))


def test_rotation_leaves_a_product_as_it_is() -> None:
    x, w = torch.randn(3, 5, 96).double(), torch.randn(7, 96).double()
    torch.testing.assert_close(rotate(x, 32) @ rotate(w, 32).T, x @ w.T)
    torch.testing.assert_close(rotate(rotate(x, 32), 32), x)


def test_rotation_stays_within_blocks() -> None:
    x = torch.zeros(1, 64)
    x[0, 3] = 4.0
    assert rotate(x, 16)[0, :16].abs().eq(1).all() and rotate(x, 16)[0, 16:].eq(0).all()


@pytest.mark.parametrize("block", [24, 0])
def test_no_power_of_two_is_refused(block: int) -> None:
    with pytest.raises(ValueError, match="a power of two"):
        hadamard(block)


def test_ragged_blocks_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"blocks of 32 do not divide the last dimension of \[48\]"
    ):
        rotate(torch.zeros(48), 32)
