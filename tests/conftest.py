"""Quantized activations: kernels that make them, and what these must give, to the bit."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
import tiers
import torch
from hypothesis import settings
from torch import nn
from xdsl.dialects.builtin import TensorType
from xdsl.parser import Parser

import gqc
from gqc.dialects.gq import BlockScaledType, LayoutAttr
from gqc.dialects.text import context
from gqc.dialects.tile import KernelOp
from gqc.dialects.torch_types import ELEMENT_TYPES
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.byte_layouts import SCALE_PLACES
from gqc.passes.quantize_kernel import Decoded, Packed, build_quantize
from gqc.quantizers import microscaling

# The same examples each time, so that what fails is what was changed; `pytest
# --hypothesis-profile=default` looks for others.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")

TORCH_TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}


@dataclass
class Activation:
    """x [M, K] of hard cases, quantized to a block-scaled type by a rule."""

    format: str
    rule: str
    k: int = 96
    rows: int = 19
    element: str = "bf16"

    def __post_init__(self) -> None:
        type_ = Parser(context(), f"!gq.block_scaled<{self.format}>").parse_type()
        assert isinstance(type_, BlockScaledType)
        self.type, self.dtype = type_, TORCH_TYPES[self.element]
        self.generator = torch.Generator().manual_seed(self.k)
        self.x = self.inputs().to(self.dtype)
        self.tensor_scale = [torch.tensor([0.37])] if type_.has_tensor_scale else []

    def inputs(self) -> torch.Tensor:
        """Normal numbers, then rows of ties, of numbers at every scale, of zeros, and specials."""
        x = torch.randn(self.rows, self.k, generator=self.generator)
        values = torch.tensor([v for v in self.type.format.values if math.isfinite(v)]).unique()
        exact = torch.cat([values, (values[1:] + values[:-1]) / 2, 1.5 * values.max()[None]])
        pick = torch.randint(len(exact), (3, self.k), generator=self.generator)
        scales = torch.tensor([[2.0**-14], [1.0], [-(2.0**3)]])
        tricky = [
            *(exact[pick] * scales),
            x[0] * torch.exp2(torch.arange(self.k) % 250 - 140.0),
            x[0] * 2.0**-126,
            x[0] * 2.0**125,
            torch.zeros(self.k),
            -torch.zeros(self.k),
            torch.where(torch.arange(self.k) == 1, math.inf, x[1]),
            torch.where(torch.arange(self.k) == 2, -math.inf, x[1]),
            torch.where(torch.arange(self.k) == 3, math.nan, x[1]),
        ]
        kept = tricky[: self.rows - 1]
        return torch.cat([x[: self.rows - len(kept)], torch.stack(kept)]) if kept else x

    def kernel(self, target: str, form: Packed | None = None) -> KernelOp:
        """The kernel that decodes, or of another form."""
        element = ELEMENT_TYPES[self.dtype]
        x_type = TensorType(element, [-1, self.k])
        kernel = build_quantize("q", target, x_type, self.type, self.rule, form or Decoded(element))
        kernel.verify()
        return kernel

    def arguments(self) -> list[torch.Tensor]:
        """x, its scale if there is one, and y filled with NaN."""
        return [self.x, *self.tensor_scale, torch.full_like(self.x, math.nan)]

    def quantized(self, x: torch.Tensor | None = None) -> BlockScaled:
        given = self.tensor_scale[0].squeeze() if self.tensor_scale else None
        return microscaling(self.x if x is None else x, self.type, self.rule, given)

    def packed(self, scales: str) -> list[torch.Tensor]:
        """What a kernel must leave in sums, scale and codes; scales in tiles go on over zeros."""
        row, (_, block) = LayoutAttr("bytes", scales=scales).row, self.type.block_of(self.x.shape)
        codes, _, *others = row.pack(self.quantized(), 1)
        sums = others[:1] if SCALE_PLACES[scales].sums else []
        height, width = SCALE_PLACES[scales].tile
        beyond = (0, -self.k % (width * block), 0, -self.rows % height)
        scale = row.pack(self.quantized(torch.nn.functional.pad(self.x, beyond)), 1)[1]
        return [*sums, scale, codes]

    def decoded(self) -> torch.Tensor:
        """What a kernel must leave in y."""
        quantized = self.quantized()
        quantized.tensor_scale = None
        return quantized.dequantize().to(self.dtype)


def same_bits(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, signs of zeros included, NaN whatever its bits."""
    nan = theirs.isnan()
    zero = torch.zeros((), dtype=theirs.dtype)
    bits = [torch.where(nan, zero, t).contiguous().view(torch.uint8) for t in (ours, theirs)]
    return torch.equal(ours.isnan(), nan) and torch.equal(*bits)


class Normed(nn.Module):
    """RMSNorm before a linear layer: as Hugging Face writes it, as Gemma does, or torch's own."""

    def __init__(self, k: int, kind: str) -> None:
        super().__init__()
        self.kind, self.norm, self.fc = kind, nn.RMSNorm(k, 1e-5), nn.Linear(k, 32, bias=False)
        nn.init.normal_(self.norm.weight, 0.5, 0.3)

    def before(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "torch":
            return self.norm(x)
        wide = x.float()
        y = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-5)
        if self.kind == "gemma":
            return (y * (1.0 + self.norm.weight.float())).type_as(x)
        return self.norm.weight * y.to(x.dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.before(x))


class Gated(nn.Module):
    """SiLU·mul before a linear layer."""

    def __init__(self, k: int) -> None:
        super().__init__()
        self.fc = nn.Linear(k, 32, bias=False)

    def before(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return nn.functional.silu(gate) * up

    def forward(self, gate: torch.Tensor, up: torch.Tensor) -> torch.Tensor:
        return self.fc(self.before(gate, up))


@dataclass
class Producer:
    """A module whose input is computed by what can be fused, and inputs of it [M, K]."""

    kind: str
    k: int
    rows: int = 19
    element: str = "bf16"

    def __post_init__(self) -> None:
        torch.manual_seed(self.k)
        module = Gated(self.k) if self.kind == "silu" else Normed(self.k, self.kind)
        self.module, self.before = module.to(TORCH_TYPES[self.element]).eval(), module.before
        scales = torch.tensor([1.0, 1e-3, 100.0])[torch.arange(self.rows) % 3, None]
        x = [torch.randn(self.rows, self.k) * scales for _ in range(1 + (self.kind == "silu"))]
        self.inputs = tuple(each.to(TORCH_TYPES[self.element]) for each in x)

    def kernel(self, target: str, scheme: str = "mxfp8") -> KernelOp:
        """The kernel that computes and quantizes."""
        compiled = gqc.compile(self.module, self.inputs, scheme=scheme, target=target)
        (kernel,) = [k for k in compiled.kernels if k.name.startswith("quantize_")]
        return kernel.op

    def arguments(self) -> list[torch.Tensor]:
        """What the kernel reads."""
        weights = [p.detach() for name, p in self.module.named_parameters() if "norm" in name]
        return [*self.inputs, *weights]

    def produced(self) -> torch.Tensor:
        """What is quantized, by torch."""
        with torch.no_grad():
            return self.before(*self.inputs)


@pytest.fixture
def emulated_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Code for NEON runs here, whatever the CPU."""
    tiers.emulate(monkeypatch)


@pytest.fixture(scope="session")
def producer() -> type[Producer]:
    return Producer


@pytest.fixture(scope="session")
def activation() -> type[Activation]:
    return Activation


@pytest.fixture(scope="session")
def equal_bits():
    return same_bits
