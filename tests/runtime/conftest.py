"""A small compiled model in both modes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import gqc


@pytest.fixture(autouse=True)
def own_cache(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Compiled kernels of these tests stay out of the user's cache."""
    monkeypatch.setenv("GQC_CACHE", str(tmp_path_factory.getbasetemp() / "gqc"))
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    torch._dynamo.reset()
    yield
    torch.set_num_threads(threads)


class Block(nn.Module):
    """Linear layers with and without a bias, one of them shared, one kept, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(64, 96), nn.Linear(96, 64, bias=False)
        self.head = nn.Linear(64, 8)
        self.register_buffer("offset", torch.randn(64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(2):
            x = x + self.down(nn.functional.gelu(self.up(x))) + self.offset
        return self.head(x)


def block(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return Block().eval().requires_grad_(False)


def compile_block(mode: str, seed: int = 0) -> Any:
    example = torch.randn(3, 64) if mode == "whole" else None
    return gqc.compile(block(seed), example, scheme="int4_g32", ignore=["head"])


@pytest.fixture
def build() -> Any:
    """The model, with the weights of a seed."""
    return block


@pytest.fixture
def compile_model() -> Any:
    """It compiled, `whole` or its `layers` alone."""
    return compile_block


@pytest.fixture(scope="module", params=["whole", "layers"])
def compiled(request: pytest.FixtureRequest) -> Any:
    """It compiled, to be left as it is."""
    return compile_block(request.param)


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
