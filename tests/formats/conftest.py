"""Block-scaled weights with random parts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from xdsl.parser import Parser

from gqc.dialects.gq import BlockScaledType
from gqc.dialects.text import context
from gqc.dialects.torch_types import DTYPES
from gqc.formats.block_scaled import BlockScaled

Make = Callable[[str, int, int], BlockScaled]


def parse_format(text: str) -> BlockScaledType:
    """The type that `1x32 : f16 : ui4` stands for."""
    type_ = Parser(context(), f"!gq.block_scaled<{text}>").parse_type()
    assert isinstance(type_, BlockScaledType)
    return type_


@pytest.fixture(scope="session")
def block_scaled() -> Make:
    """A weight [N, K] of a format with random codes, scales and zero points."""

    def make(format: str, n: int, k: int) -> BlockScaled:
        type_ = parse_format(format)
        generator = torch.Generator().manual_seed(n * 1000 + k)
        bits, signed = type_.format.bits, type_.format.signed and type_.format.is_integer
        codes = torch.randint(0, 1 << bits, (n, k), generator=generator)
        codes = codes - (1 << bits) * (codes >> bits - 1) if signed else codes
        shape = type_.scale_shape((n, k))
        scale = torch.rand(shape, generator=generator) + 0.5
        zero = None
        if type_.zero_mode.data == "quantized":
            zero = torch.randint(0, 1 << bits, shape, generator=generator).to(torch.uint8)
        elif type_.has_zero:
            zero = torch.randn(shape, generator=generator).to(DTYPES[type_.zero])
        return BlockScaled(
            type_,
            codes.to(torch.int8 if signed else torch.uint8),
            scale.to(DTYPES[type_.scale]),
            zero,
            torch.tensor(0.375) if type_.has_tensor_scale else None,
        )

    return make
