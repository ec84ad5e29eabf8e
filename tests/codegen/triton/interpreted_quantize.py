"""Printed quantizing kernels in Triton's interpreter, to the bit; run by test_interpreter.py."""

from __future__ import annotations

import pytest
import torch

from gqc.codegen.triton import load
from gqc.codegen.triton.interpreter import interpreting
from gqc.dialects.gq import LayoutAttr
from gqc.formats.microscaling import MX_ROUNDING
from gqc.native import native
from gqc.passes.quantize_kernel import Packed
from gqc.quantizers import microscaling
from gqc.schemes import parse_scheme

assert interpreting(), "run through test_interpreter.py"

ELEMENTS = ("f4E2M1FN", "f6E2M3FN", "f6E3M2FN", "f8E4M3FN", "f8E5M2", "si8")
NVFP4 = "1x16 : f8E4M3FN : f4E2M1FN"
FORMATS = [
    *((f"1x32 : f8E8M0FNU : {element}", rule) for element in ELEMENTS for rule in MX_ROUNDING),
    (f"{NVFP4}, global = f32", "amax"),
    (NVFP4, "amax"),
]


PACKED = [
    (f"1x32 : f8E8M0FNU : {element}", rule)
    for element, rule in zip(ELEMENTS[:-1], (*MX_ROUNDING, "floor"), strict=True)
]


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(
    ("scales", "target"),
    [("linear", "sm_80"), ("swizzle_32_4_4", "sm_100"), ("shuffle_32_8", "gfx950")],
)
@pytest.mark.parametrize(("format", "rule"), [*PACKED, *FORMATS[-2:]])
def test_packed(activation, format, rule, scales, target) -> None:
    """Codes by arithmetic (sm_80) and by assembly; every place in tiles of scales is written."""
    turn = FORMATS.index((format, rule)) + (scales == "linear")
    rows, k = ((33, 96), (130, 288))[turn % 2]
    x = activation(format, rule, k=k, rows=rows)
    expected = x.packed(scales)
    found = [torch.full_like(part.view(torch.int8), 77).view(part.dtype) for part in expected]
    load(x.kernel(target, Packed(scales)))(x.x, *x.tensor_scale, *found)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours.view(torch.int8), theirs.view(torch.int8))


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize(("format", "rule"), FORMATS)
def test_every_format_and_rule(activation, equal_bits, format, rule) -> None:
    turn = FORMATS.index((format, rule))
    x = activation(
        format,
        rule,
        k=(96, 288)[turn % 2],
        rows=(19, 33)[turn % 2],
        element=("bf16", "f32")[turn % 2],
    )
    *inputs, y = x.arguments()
    load(x.kernel("sm_90"))(*inputs, y)
    assert equal_bits(y, x.decoded())


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
def test_the_scale_of_a_tensor_may_be_any(activation, equal_bits) -> None:
    x = activation(f"{NVFP4}, global = f32", "amax")
    run = load(x.kernel("sm_90"))
    for scale in (0.0, 2.0**-149, 1e-30, 1e30, 3e38, float("inf"), float("nan")):
        x.tensor_scale = [torch.tensor([scale])]
        *inputs, y = x.arguments()
        run(*inputs, y)
        assert equal_bits(y, x.decoded()), scale


@pytest.mark.filterwarnings("ignore:.*encountered in:RuntimeWarning")
@pytest.mark.parametrize("target", ["sm_90", "sm_100", "gfx950"])
@pytest.mark.parametrize("kind", ["hugging_face", "gemma", "torch", "silu"])
def test_fused(producer, kind, target) -> None:
    """What the kernel computes itself may fall on the other side between two codes, but rarely."""
    case = producer(kind, (160, 96)[target == "sm_100"], rows=35)
    scheme = parse_scheme("mxfp8").activation
    assert scheme is not None
    expected = microscaling(case.produced(), scheme.type(), scheme.scale_rule)
    kernel = case.kernel(target)
    parts = [expected.dequantize().bfloat16()]
    if target != "sm_90":
        row = native(target, expected.type, expected.type)
        assert row is not None
        codes, scale = LayoutAttr("bytes", scales=row.scales).row.pack(expected, 1)
        parts = [scale, codes]
    found = [torch.zeros_like(part.view(torch.int8)).view(part.dtype) for part in parts]
    load(kernel)(*case.arguments(), *found)
    for ours, theirs in zip(found, parts, strict=True):
        assert (ours.view(torch.int8) != theirs.view(torch.int8)).float().mean() < 2e-3
