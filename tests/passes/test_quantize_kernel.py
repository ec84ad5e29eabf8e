"""Quantizing kernels, interpreted: every format and rule, to the bit."""

from __future__ import annotations

import pytest
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects.interpret import interpreter
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.microscaling import MX_ROUNDING

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
