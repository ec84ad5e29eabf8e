"""torch.ops.gqc.attend: gqc's kernel where it fits, PyTorch elsewhere, and one answer."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from gqc.runtime import attention


def caches(room: int, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(room)
    return tuple(torch.randn(1, 2, room, size, generator=generator).to(dtype) for _ in range(2))  # type: ignore[return-value]


def exact(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """In fp64, with keys repeated and a mask of what comes after."""
    q, keys, values = (t.double() for t in (q, keys, values))
    shared, (rows, length) = q.shape[1] // keys.shape[1], (q.shape[2], keys.shape[2])
    keys, values = (t.repeat_interleave(shared, 1) for t in (keys, values))
    scores = scale * q @ keys.transpose(2, 3)
    later = torch.arange(length) > torch.arange(length - rows, length)[:, None]
    return (scores.masked_fill(later, -torch.inf).softmax(-1) @ values).transpose(1, 2)


@pytest.mark.parametrize("room, size", [(64, 32), (50, 32), (64, 24)], ids=str)
@pytest.mark.parametrize("rows", [1, 4, 5, 17])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_attends_to_all_before(rows: int, room: int, size: int, dtype: torch.dtype) -> None:
    keys, values = caches(room, size, dtype)
    q = torch.randn(1, rows, 6, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    q = q.transpose(1, 2)
    for length in (rows, 33, 50):
        read = keys[:, :, :length], values[:, :, :length]
        y = torch.ops.gqc.attend(q, *read, 0.25)
        expected = exact(q, *read, 0.25)
        assert y.shape == (1, rows, 6, size) and y.is_contiguous() and y.dtype == dtype
        assert (y.double() - expected).abs().max() < (1e-5 if dtype == torch.float32 else 0.02)


def test_which_has_a_kernel() -> None:
    keys, values = caches(64, 32, torch.float32)
    q = torch.zeros(1, 4, 1, 32)
    assert attention.kernel_of(q, keys[:, :, :7], values[:, :, :7], 1.0) is not None
    assert attention.kernel_of(q, keys[:, :, :7].clone(), values[:, :, :7].clone(), 1.0) is None
    assert attention.kernel_of(q, keys, values.transpose(2, 3), 1.0) is None
    assert attention.launcher(4, 2, 20, 64, torch.float32, 1.0) is None


def test_opcheck() -> None:
    keys, values = caches(64, 32, torch.float32)
    arguments = (torch.randn(1, 4, 1, 32), keys[:, :, :7], values[:, :, :7], 0.5)
    torch.library.opcheck(torch.ops.gqc.attend.default, arguments)


def test_gradients_are_those_of_torch() -> None:
    """Gqc's kernel has none: where they are asked for, PyTorch computes."""
    generator = torch.Generator().manual_seed(5)
    shapes = ((1, 4, 1, 16), (1, 2, 64, 16), (1, 2, 64, 16))
    q, keys, values = (torch.randn(s, generator=generator).requires_grad_() for s in shapes)
    y = torch.ops.gqc.attend(q, keys, values, 0.25)
    found = torch.autograd.grad(y.square().sum(), (q, keys, values))
    expected = torch.autograd.grad(exact(q, keys, values, 0.25).square().sum(), (q, keys, values))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
