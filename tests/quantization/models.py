"""Small models of several blocks, and inputs of several lengths."""

from __future__ import annotations

from typing import Any

import small_models
import torch
from torch import nn


def llama(blocks: int = 2) -> Any:
    """A Llama in which each head of values has one reader, so that all factors fold."""
    torch.manual_seed(0)
    model = small_models.llama(num_hidden_layers=blocks, num_attention_heads=2)
    with torch.no_grad():  # channels that AWQ has something to do about
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.mul_(torch.randn_like(parameter).exp())
    return model


def uneven_llama(blocks: int = 2) -> Any:
    """The same, every other column of down_proj larger: better quantized in another order."""
    model = llama(blocks)
    with torch.no_grad():
        for block in model.model.layers:
            block.mlp.down_proj.weight[:, ::2] *= 4
    return model


def gpt2() -> Any:
    torch.manual_seed(0)
    return small_models.gpt2()


def uneven_gpt2() -> Any:
    """One block, with unlike rows of c_proj's weight [K, N], and biases before it."""
    torch.manual_seed(0)
    model = small_models.gpt2(n_layer=1)
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_proj.weight[::2] *= 4
            block.mlp.c_fc.bias.normal_()
    return model


def texts(count: int = 6) -> list[dict[str, torch.Tensor]]:
    """Batches of token ids of unlike shapes."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(1 + i % 3, 24 + 5 * i) for i in range(count)]
    return [{"input_ids": torch.randint(3, 96, shape, generator=generator)} for shape in shapes]


class Experts(nn.Module):
    """Blocks of two experts, of which the second is never called; their layers share an input."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))
            self.up = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.gate[0](x).tanh() * self.up[0](x)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(self.Block() for _ in range(3))
        self.early, self.late = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.early(x)
        for layer in self.layers:
            x = layer(x)
        return self.late(x)


class Skipping(nn.Module):
    """Blocks of which the last reads what the first gave: no chain."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = self.layers[0](x).tanh()
        second = self.layers[1](first).tanh()
        return self.layers[2](first + second)
