"""Small models, each with a way in which channels of one layer's input come from weights before."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

K = 16


class Block(nn.Module):
    """Layers `first` and `last`, weights of a norm, and a tensor x [batch, tokens, 16] between."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(K, K), nn.Linear(K, K)
        self.weight = nn.Parameter(torch.rand(K) + 0.5)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.between(self.first(x)))

    def between(self, x: Tensor) -> Tensor:
        return x


class LlamaNorm(Block):
    def between(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class GemmaNorm(Block):
    def between(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.weight)


class TorchNorm(Block):
    def between(self, x):
        return F.rms_norm(x, (K,), self.weight)


class LayerNorm(Block):
    def __init__(self, affine: bool = True):
        super().__init__()
        self.norm = nn.LayerNorm(K, elementwise_affine=affine).double()
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)

    def between(self, x):
        return self.norm(x)


class Pair(Block):
    """Two layers that read a norm."""

    def __init__(self):
        super().__init__()
        self.other = nn.Linear(K, K).double()

    def forward(self, x):
        normed = F.rms_norm(x, (K,), self.weight)
        return self.last(normed) + self.other(normed)


class Residual(Block):
    def forward(self, x):
        normed = F.rms_norm(x, (K,), self.weight)
        return normed + self.last(normed)


class Relu(Block):
    def between(self, x):
        return F.relu(x)


class NewGelu(Block):
    """As GPT-2 spells it: the input is read several times."""

    def between(self, x):
        return 0.5 * x * (1.0 + torch.tanh(0.8 * (x + 0.04 * torch.pow(x, 3.0))))


class Conv(Block):
    """GPT-2's layers, whose weights are [K, N]."""

    def __init__(self):
        super().__init__()
        self.first, self.last = Conv1D(K, K).double(), Conv1D(K, K).double()
        nn.init.normal_(self.first.bias)


class Gated(Block):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(K, K).double()

    def forward(self, x):
        return self.last(F.silu(self.first(x)) * self.up(x))


class Sums(Block):
    """Sums, differences and quotients: every part is scaled, but for what divides."""

    def __init__(self):
        super().__init__()
        self.up = nn.Linear(K, K).double()

    def forward(self, x):
        y = self.first(x) - self.up(x) / (1.0 + x.pow(2).mean(-1, keepdim=True))
        return self.last(y + self.weight)


class Attention(Block):
    """Values of `kv` heads for 4 heads of queries."""

    def __init__(self, kv: int = 4, eager: bool = False):
        super().__init__()
        self.kv, self.eager = kv, eager
        self.query, self.key = nn.Linear(K, K).double(), nn.Linear(K, 4 * kv).double()
        self.first = nn.Linear(K, 4 * kv).double()

    def forward(self, x):
        batch, tokens, _ = x.shape
        q, k, v = (
            layer(x).view(batch, tokens, -1, 4).transpose(1, 2)
            for layer in (self.query, self.key, self.first)
        )
        if self.eager:
            y = (q @ k.transpose(2, 3)).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=self.kv < 4)
        return self.last(y.transpose(1, 2).reshape(batch, tokens, K))


class Repeated(Attention):
    """Heads of values are repeated as transformers does it."""

    def __init__(self):
        super().__init__(kv=2)

    def forward(self, x):
        batch, tokens, _ = x.shape
        q = self.query(x).view(batch, tokens, 4, 4).transpose(1, 2)
        k, v = (
            layer(x)
            .view(batch, tokens, 2, 4)
            .transpose(1, 2)[:, :, None]
            .expand(batch, 2, 2, tokens, 4)
            .reshape(batch, 4, tokens, 4)
            for layer in (self.key, self.first)
        )
        y = F.scaled_dot_product_attention(q, k, v)
        return self.last(y.transpose(1, 2).reshape(batch, tokens, K))


class Buffer(Block):
    def __init__(self):
        super().__init__()
        weight = self.weight.detach()
        del self.weight
        self.register_buffer("weight", weight)

    def between(self, x):
        return F.rms_norm(x, (K,), self.weight)


class Tied(Block):
    """One norm twice."""

    def between(self, x):
        return F.rms_norm(F.rms_norm(x, (K,), self.weight).sin(), (K,), self.weight)


class TiedLayers(Block):
    def __init__(self):
        super().__init__()
        self.last.weight = self.first.weight
