"""Quantized activations on every tier, to the bit."""

from __future__ import annotations

import pytest
import torch
from tiers import runs_here

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS
from gqc.errors import GqcError
from gqc.formats.microscaling import MX_ROUNDING
from gqc.passes.quantize_kernel import Packed

TIERS = list(ISAS)
RULES = list(MX_ROUNDING)
ELEMENTS = ("f4E2M1FN", "f6E2M3FN", "f6E3M2FN", "f8E4M3FN", "f8E5M2", "si8")
NVFP4 = "1x16 : f8E4M3FN : f4E2M1FN"


@pytest.fixture(params=TIERS)
def isa(request: pytest.FixtureRequest) -> str:
    runs_here(request.param)
    return request.param


@pytest.mark.parametrize("element", ELEMENTS)
def test_mx_formats(activation, equal_bits, isa, element):
    """Rules, types, row counts and columns that fill no step take turns."""
    turn = ELEMENTS.index(element) + TIERS.index(isa)
    for i in (0, 1):
        x = activation(
            f"1x32 : f8E8M0FNU : {element}",
            RULES[(turn + 2 * i) % 4],
            k=(128, 96, 160)[(turn + i) % 3],
            rows=(19, 13)[i],
            element=("bf16", "f32", "f16")[(turn + i) % 3],
        )
        *inputs, y = x.arguments()
        cpu.load(x.kernel(f"cpu_{isa}"))(*inputs, y)
        assert equal_bits(y, x.decoded()), (x.rule, x.element)


@pytest.mark.parametrize("format", [NVFP4, f"{NVFP4}, global = f32"])
def test_nvfp4(activation, equal_bits, isa, format):
    for element, k in (("bf16", 80), ("f32", 128)):
        x = activation(format, "amax", k=k, element=element)
        *inputs, y = x.arguments()
        cpu.load(x.kernel(f"cpu_{isa}"))(*inputs, y)
        assert equal_bits(y, x.decoded()), element


@pytest.mark.parametrize("block", [16, 32, 256])
def test_integers_with_their_sums(activation, equal_bits, isa, block):
    """Codes, scales and sums, as dots of bytes read them; and decoded, for those that have none."""
    x = activation(f"1x{block} : f32 : si8", "amax", k=512, element=("bf16", "f32")[block == 32])
    expected = x.packed("summed")
    found = [torch.full_like(part, 77) for part in expected]
    cpu.load(x.kernel(f"cpu_{isa}", Packed("summed")))(x.x, *found)
    assert all(map(equal_bits, found, expected))
    *inputs, y = x.arguments()
    cpu.load(x.kernel(f"cpu_{isa}"))(*inputs, y)
    assert equal_bits(y, x.decoded())


def test_the_scale_of_a_tensor_may_be_any(activation, equal_bits):
    """0, infinity and NaN among them: what is divided by them is 0, the greatest or NaN."""
    x = activation(f"{NVFP4}, global = f32", "amax")
    run = cpu.load(x.kernel("cpu"))
    for scale in (0.0, 2.0**-149, 1e-30, 1e30, 3e38, float("inf"), float("nan")):
        x.tensor_scale = [torch.tensor([scale])]
        *inputs, y = x.arguments()
        run(*inputs, y)
        assert equal_bits(y, x.decoded()), scale


def test_threads_do_not_change_a_bit(activation, equal_bits):
    x = activation("1x32 : f8E8M0FNU : f8E4M3FN", "rceil", k=4096, rows=67)
    run, before = cpu.load(x.kernel("cpu")), torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            *inputs, y = x.arguments()
            run(*inputs, y)
            assert equal_bits(y, x.decoded())
    finally:
        torch.set_num_threads(before)


def test_blocks_that_fill_no_vector_are_refused(activation):
    x = activation("1x8 : f8E8M0FNU : f8E4M3FN", "floor")
    with pytest.raises(GqcError, match="blocks of 8 do not fill vectors of 16 lanes"):
        cpu.lower(x.kernel("cpu_avx512"))
