"""Quantizing kernels, interpreted: every format and rule, to the bit."""

from __future__ import annotations

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects.interpret import interpreter
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.byte_layouts import SCALE_PLACES
from gqc.formats.microscaling import MX_ROUNDING
from gqc.passes.quantize_kernel import Packed

ELEMENTS = ("f4E2M1FN", "f6E2M3FN", "f6E3M2FN", "f8E4M3FN", "f8E5M2", "si8")
NVFP4 = "1x16 : f8E4M3FN : f4E2M1FN"
FORMATS = [
    *((f"1x32 : f8E8M0FNU : {element}", rule) for element in ELEMENTS for rule in MX_ROUNDING),
    (f"{NVFP4}, global = f32", "amax"),
    (NVFP4, "amax"),
]


@pytest.mark.parametrize("target", ["cpu_portable", "sm_90"])
@pytest.mark.parametrize(("format", "rule"), FORMATS)
def test_every_format_and_rule(activation, equal_bits, format, rule, target):
    turn = FORMATS.index((format, rule))
    x = activation(format, rule, k=(96, 288)[turn % 2], element=("bf16", "f16", "f32")[turn % 3])
    kernel, arguments = x.kernel(target), x.arguments()
    run_kernel(interpreter(ModuleOp([kernel]), {}), kernel, arguments)
    assert equal_bits(arguments[-1], x.decoded())


WIDENED = {"f6E2M3FN": 3, "f6E3M2FN": 2}
"""Six-bit elements, and the bits of their mantissas: E4M3 has three."""


def bytes_of(codes: torch.Tensor, element: str) -> torch.Tensor:
    """Codes as the bytes that a matrix unit reads, one by one."""
    if element == "f4E2M1FN":
        return codes[:, ::2] | codes[:, 1::2] << 4
    if element in WIDENED:
        return (codes & 31) << 3 - WIDENED[element] | (codes >> 5) << 7
    return codes


@pytest.mark.parametrize("scales", SCALE_PLACES)
@pytest.mark.parametrize(("format", "rule"), [f for f in FORMATS if "si8" not in f[0]][::3])
@pytest.mark.parametrize(("rows", "k"), [(19, 96), (130, 288)])
def test_packed(activation, format, rule, scales, rows, k):
    """Codes and scales at their places; no place of swizzled scales is left as it was."""
    x = activation(format, rule, k=k, rows=rows)
    kernel, quantized = x.kernel("sm_100", Packed(scales)), x.quantized()
    swizzled = scales != "linear"
    expected = quantized.scale.view(torch.uint8)
    groups = expected.shape[1]
    shape = (-(-rows // 128), -(-groups // 4), 2, 256) if swizzled else expected.shape
    scale = torch.full(shape, 77, dtype=torch.uint8).view(quantized.scale.dtype)
    packed = bytes_of(quantized.codes, x.type.format.name)
    codes = torch.full(packed.shape, 77, dtype=torch.int8)
    arguments = [x.x, *x.tensor_scale, scale, codes]
    run_kernel(interpreter(ModuleOp([kernel]), {}), kernel, arguments)
    assert torch.equal(codes.view(torch.uint8), packed)
    found = scale.view(torch.uint8)
    if swizzled:
        least = int(str(x.type.scale) == "f8E4M3FN")  # 2^-9 in E4M3, 2^-127 in E8M0
        rest = found.view(*shape[:2], 32, 4, 4).permute(0, 3, 2, 1, 4).reshape(shape[0] * 128, -1)
        found = rest[:rows, :groups].clone()
        rest[:rows, :groups] = least
        assert (rest == least).all()
    assert torch.equal(found, expected)
