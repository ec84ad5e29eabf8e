"""The models that go through the front end, each captured once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import small_models
import torch
import transformers
from torch import nn

from gqc.frontend.capture import capture
from gqc.frontend.import_fx import import_fx
from gqc.frontend.signature import Imported


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def tokens(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 96, (batch, length))


class MLP(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(torch.nn.functional.gelu(self.up(x)))


class ConvNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, stride=2)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 10)
        self.norm.running_mean = torch.randn(8)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.conv(image)).relu().mean((2, 3)))


class Recorder(nn.Module):
    """Writes a counter and a cache that is not in its state dict."""

    calls: torch.Tensor
    last: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(4, 8), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.linear(x) + self.last[0]
        self.calls += 1
        self.last[1:].copy_(y[:3])
        self.last.mul_(0.5)
        return y * self.calls


class Branches(nn.Module):
    """Ops with several results, a tied layer, keyword inputs and a nested output."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(12, 12), nn.Linear(12, 12)
        self.right.weight = self.left.weight
        self.scale = torch.tensor([1.0, -1.0, 2.0])

    def forward(
        self, inputs: dict[str, torch.Tensor], *, residual: torch.Tensor | None = None
    ) -> dict[str, Any]:
        first, second = self.left(inputs["x"]).chunk(2, -1)
        parts = self.right(inputs["y"]).split([3, 4, 5], -1)
        (single,) = first.split(6, -1)
        top = torch.topk(second, 2)
        if residual is not None:
            single = single + residual
        return {
            "sums": [parts[0] * self.scale, parts[2].sum(-1)],
            "top": (top.values, top.indices),
            "rest": single.masked_fill(single > 0, -torch.inf),
            "rows": first.shape[0],
            "none": None,
        }


def llama() -> nn.Module:
    return small_models.llama(hidden_size=32, intermediate_size=64).train()


def gpt2() -> nn.Module:
    return small_models.gpt2(n_embd=32).train()


def bert() -> nn.Module:
    return transformers.BertModel(
        transformers.BertConfig(
            vocab_size=96,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            max_position_embeddings=64,
        )
    )


def vit() -> nn.Module:
    return transformers.ViTModel(
        transformers.ViTConfig(
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=64,
            image_size=16,
            patch_size=8,
        )
    )


def text(batch: int, length: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.int64)
    mask[0, length // 2 :] = 0
    return {"input_ids": tokens(batch, length), "attention_mask": mask}


def branches(rows: int) -> tuple[tuple, dict[str, Any]]:
    x, y = torch.randn(rows, 12), torch.randn(rows, 12)
    return ({"x": x, "y": y},), {"residual": torch.randn(rows, 6)}


@dataclass
class Case:
    """A model, the inputs to capture it with, and inputs of other sizes as `(args, kwargs)`."""

    build: Callable[[], nn.Module]
    example: Any
    others: list[tuple[tuple, dict[str, Any]]] = field(default_factory=list)


torch.manual_seed(0)
CASES: dict[str, Case] = {
    "mlp": Case(MLP, torch.randn(3, 16), [((torch.randn(n, 16),), {}) for n in (1, 7)]),
    "bert": Case(bert, text(2, 8), [((), text(1, 12)), ((), text(5, 3))]),
    "llama": Case(
        llama,
        {"input_ids": tokens(1, 8)},
        [((), {"input_ids": tokens(1, 5)}), ((), {"input_ids": tokens(3, 13)})],
    ),
    "gpt2": Case(gpt2, tokens(2, 8), [((tokens(1, 5),), {}), ((tokens(3, 13),), {})]),
    "vit": Case(
        vit, torch.randn(2, 3, 16, 16), [((torch.randn(n, 3, 16, 16),), {}) for n in (1, 5)]
    ),
    "convnet": Case(
        ConvNet, torch.randn(2, 3, 9, 9), [((torch.randn(n, 3, 9, 9),), {}) for n in (1, 5)]
    ),
    "recorder": Case(Recorder, torch.randn(4, 8), [((torch.randn(n, 8),), {}) for n in (3, 9, 3)]),
    "branches": Case(Branches, branches(4), [branches(2), branches(9)]),
}


@cache
def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return CASES[name].build().eval()


@cache
def imported_once(name: str) -> Imported:
    return import_fx(capture(built(name), CASES[name].example))


@pytest.fixture
def cases() -> dict[str, Case]:
    return CASES


@pytest.fixture
def build() -> Callable[[str], nn.Module]:
    """A model by name, the same one at each call: copy it before it is changed."""
    return built


@pytest.fixture
def imported() -> Callable[[str], Imported]:
    """A model's IR by name, the same one at each call."""
    return imported_once
