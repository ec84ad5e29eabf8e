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
    ("1x32 : f32 : si8", "amax"),
]


@pytest.mark.parametrize(("format", "rule"), FORMATS)
def test_every_format_and_rule(activation, equal_bits, format, rule):
    turn = FORMATS.index((format, rule))
    x = activation(format, rule, k=(96, 288)[turn % 2], element=("bf16", "f16", "f32")[turn % 3])
    kernel, arguments = x.kernel(("cpu_portable", "sm_90")[turn // 2 % 2]), x.arguments()
    run_kernel(interpreter(ModuleOp([kernel]), {}), kernel, arguments)
    assert equal_bits(arguments[-1], x.decoded())


@pytest.mark.parametrize("scales", [name for name, row in SCALE_PLACES.items() if not row.sums])
@pytest.mark.parametrize(("format", "rule"), [f for f in FORMATS if "si8" not in f[0]][::3])
def test_packed(activation, format, rule, scales):
    """Codes and scales at their places; every place of swizzled scales is written."""
    rows, k = ((19, 96), (130, 288))[FORMATS.index((format, rule)) % 2]
    x = activation(format, rule, k=k, rows=rows)
    kernel, expected = x.kernel("sm_100", Packed(scales)), x.packed(scales)
    found = [torch.full_like(part.view(torch.int8), 77).view(part.dtype) for part in expected]
    run_kernel(interpreter(ModuleOp([kernel]), {}), kernel, [x.x, *x.tensor_scale, *found])
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.view(torch.int8), theirs.view(torch.int8))


INT8 = [f"1x{block} : f32 : si8" for block in (16, 32, 128)]


@pytest.mark.parametrize("format", INT8)
def test_integers_with_their_sums(activation, equal_bits, format):
    """NaN, inf, zeros and subnormals are among the elements."""
    x = activation(format, "amax", k=384)
    kernel, expected = x.kernel("cpu_avx2", Packed("summed")), x.packed("summed")
    found = [torch.full_like(part, 77) for part in expected]
    run_kernel(interpreter(ModuleOp([kernel]), {}), kernel, [x.x, *found])
    assert all(map(equal_bits, found, expected))
