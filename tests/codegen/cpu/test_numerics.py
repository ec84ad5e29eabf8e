"""Every format on every tier, against float64 on the exactly dequantized weight."""

from __future__ import annotations

from dataclasses import replace
from math import prod

import pytest
import torch
from tiers import runs_here
from xdsl.dialects import memref

from gqc.codegen import cpu
from gqc.codegen.cpu.isa import ISAS, host
from gqc.dialects.tile import element_of, shape_of
from gqc.formats.elements import INTEGER_BITS
from gqc.passes import panel_matmul_kernel, split_m_buckets
from gqc.targets import TARGETS

TORCH_TYPES = {"bf16": torch.bfloat16, "f32": torch.float32}
INTEGERS = [f"{sign}i{bits}" for bits in INTEGER_BITS for sign in "us"]
ZEROS = {
    "none": "",
    "original": ", zero = f16, zero_mode = original",
    "rescale": ", zero = f16, zero_mode = rescale",
}
MODES = [*ZEROS, "quantized"]
TIERS = [isa for isa in ISAS if isa not in ("cooperlake", "avx512vnni", "avxvnni")]
"""The others multiply floats as these do, but for codes of 8 bits on `cooperlake`."""
ROWS = (1, 3, 16, 67)


def zero_text(mode: str, bits: str) -> str:
    return f", zero = ui{bits}, zero_mode = quantized" if mode == "quantized" else ZEROS[mode]


def in_parts(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Split K of layers that are small enough for a test."""
    monkeypatch.setattr(split_m_buckets, "PART_CODES", 1)
    monkeypatch.setitem(TARGETS, target, replace(TARGETS[target], programs=16))


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("element", INTEGERS)
def test_every_integer_and_zero_mode(linear, isa, element):
    """Two zero modes for each tier and element; modes, activations, row counts and the bias take
    turns, so that each pair of choices occurs."""
    runs_here(isa)
    turn = INTEGERS.index(element) + TIERS.index(isa)
    for i in (0, 1):
        mode = MODES[(turn + 2 * i + turn // 4) % 4]
        if mode == "quantized" and element[0] == "s":  # packed zero points are of unsigned codes
            mode = "original"
        activation = ("f32", "bf16")[(turn // 2 + i) % 2]
        layer = linear(
            100, 128, f"1x64 : f16 : {element}{zero_text(mode, element[2:])}", activation, i == 0
        )
        layer.check(isa, ROWS[(INTEGERS.index(element) // 2 + i) % 4])


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("activation", ["f32", "bf16"])
def test_every_row_count(linear, isa, activation):
    runs_here(isa)
    for rows in ROWS:
        linear(64, 64, f"1x32 : f16 : ui4{ZEROS['rescale']}", activation).check(isa, rows)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize(
    "format",
    [
        f"1x128 : f16 : ui4{ZEROS['rescale']}",
        f"1x128 : f16 : ui8{ZEROS['original']}",
        "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    ],
)
def test_long_sums_of_f32_lose_little(linear, isa, format):
    """As little as a dense matmul's: 2.6e-7 of the results. One sum of all of K, or sums of codes
    about their middle of 8 or 128, lose three to five times as much."""
    runs_here(isa)
    layer = linear(64, 4096, format, "f32")
    if (zero := layer.weight.zero) is not None:
        middle = 2.0 ** (layer.element.format.bits - 1) - 0.5
        zero[:] = middle if layer.element.mode.shifts_codes else -middle * layer.weight.scale
    for rows in (16, 20):
        arguments = layer.arguments(rows)
        cpu.load(layer.kernel(isa, rows), isa)(*arguments)
        y, _ = layer.reference(arguments)
        error = arguments[-1].double() - y
        assert error.square().mean().sqrt() < 2.6e-7 * y.square().mean().sqrt()


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("block", ["16", "32", "128", "256", "?"])
def test_every_block(linear, isa, block):
    runs_here(isa)
    for element, activation in (("ui4", "f32"), ("si3", "bf16"), ("si8", "bf16")):
        linear(64, 256, f"1x{block} : f16 : {element}", activation).check(isa, 3)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("k", [33, 100])
def test_k_that_fills_no_step(linear, isa, k):
    """Whole-row blocks leave a tail of K: x reads 0 there, and is not read beyond its end."""
    runs_here(isa)
    zero = zero_text("rescale", "4")
    for element, activation in ((f"ui4{zero}", "f32"), ("si3", "bf16"), ("si8", "bf16")):
        linear(64, k, f"1x? : f16 : {element}", activation).check(isa, 5)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize(("n", "activation"), [(1, "f32"), (65, "bf16"), (130, "f16")])
def test_n_that_fills_no_tile(linear, isa, n, activation):
    runs_here(isa)
    zero = zero_text("quantized", "4")
    linear(n, 64, f"1x32 : f16 : ui4{zero}", activation, bias=True).check(isa, 5)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("activation", ["bf16", "f16", "f32"])
@pytest.mark.parametrize(
    "format",
    [
        "1x32 : f16 : ui4, zero = f16, zero_mode = rescale",  # scaled after the dot, sums of x
        "1x64 : bf16 : ui3, zero = ui3, zero_mode = quantized",
        "1x16 : f16 : si1",  # several blocks in a step
        "1x? : f16 : si8",
        "1x16 : f8E4M3FN : f4E2M1FN, global = f32",  # scaled before it, exactly
        "1x32 : f8E8M0FNU : f6E3M2FN",
        "1x32 : f8E8M0FNU : si8",
    ],
)
def test_panels(linear, isa, format, activation, monkeypatch):
    """Weights decoded to memory first: several blocks of rows, chunks of K and columns that leave
    tails, and panels that share sums of x."""
    runs_here(isa)
    monkeypatch.setattr(panel_matmul_kernel, "PANEL_BYTES", 16 << 10)
    tiling = replace(TARGETS[f"cpu_{isa}"].tilings.usual[-1], panel=10)
    linear(330, 192, format, activation, bias=True).check(isa, 19, tiling)


def test_panels_fit_a_small_stack(linear):
    """Threads may have 1 MiB of stack, whatever K is."""
    for k in (4096, 11008, 65536):
        kernel = linear(64, k, f"1x32 : f16 : ui4{ZEROS['rescale']}", "bf16").kernel(
            "avx512bf16", 300
        )
        arrays = [op.memref for op in kernel.walk() if isinstance(op, memref.AllocaOp)]
        sizes = [prod(shape_of(a)) * TORCH_TYPES[str(element_of(a))].itemsize for a in arrays]
        assert len(sizes) == 3 and sum(sizes) <= 512 << 10


@pytest.mark.parametrize(("n", "rows"), [*((1024, m) for m in (1, 2, 16, 300)), (200, 1), (200, 7)])
def test_threads_change_no_bit(linear, n, rows, monkeypatch):
    """Of kernels of every bucket, where each thread has several programs; and of parts of K."""
    in_parts(monkeypatch, f"cpu_{host().name}")
    layer = linear(n, 512, f"1x64 : f16 : ui4{ZEROS['rescale']}", "bf16")
    assert (layer.kernel(host().name, rows).parts > 1) == (n == 200)
    *inputs, y = layer.arguments(rows)
    run, threads, results = cpu.load(layer.kernel(host().name, rows), host().name), (1, 2, 3), []
    before = torch.get_num_threads()
    for count in threads:
        torch.set_num_threads(count)
        results.append(torch.empty_like(y))
        run(*inputs, results[-1])
    torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize(
    ("format", "activation", "rows"),
    [
        ("1x32 : f16 : ui4, zero = f16, zero_mode = rescale", "bf16", 7),
        ("1x64 : bf16 : ui3, zero = ui3, zero_mode = quantized", "f32", 1),
        ("1x? : f16 : si8", "f16", 16),
        ("1x16 : f8E4M3FN : f4E2M1FN, global = f32", "bf16", 2),
    ],
)
def test_parts_of_k(linear, isa, format, activation, rows, monkeypatch):
    """Several programs make a tile; what comes after their sum is done once."""
    runs_here(isa)
    in_parts(monkeypatch, f"cpu_{isa}")
    layer = linear(100, 512, format, activation, bias=True)
    assert layer.kernel(isa, rows).parts > 1
    layer.check(isa, rows)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("scale", ["bf16", "f32"])
def test_scale_types(linear, isa, scale):
    runs_here(isa)
    linear(64, 64, f"1x32 : {scale} : ui2, zero = {scale}, zero_mode = original").check(isa, 3)


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("element", ["f4E2M1FN", "f6E3M2FN"])
def test_float_elements(linear, isa, element):
    """Subnormal codes included, for every code occurs."""
    runs_here(isa)
    for activation in ("f32", "bf16"):
        linear(64, 128, f"1x32 : f32 : {element}", activation).check(isa, 3)


FP8 = ("1x128 : f32 : f8E4M3FN", "1x? : bf16 : f8E4M3FN", "1x64 : f16 : f8E5M2")


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("format", FP8)
def test_fp8_under_float_scales(linear, isa, format):
    """As checkpoints have it: a scale for 128 of a row, for all of it, for 64."""
    runs_here(isa)
    turn = FP8.index(format) + TIERS.index(isa)
    for i, activation in enumerate(("f32", "bf16", "f32" if "f8E5M2" in format else "f16")):
        linear(100, 256, format, activation, i == 1).check(isa, (1, 7, 35)[(turn + i) % 3])


CODEBOOKS = ("1x64 : f32 : nf4", "1x32 : f16 : iq4_nl", "1x? : bf16 : fp4_bnb")


@pytest.mark.parametrize("isa", TIERS)
@pytest.mark.parametrize("format", CODEBOOKS)
def test_codebooks(linear, isa, format):
    """NF4's values are exact in f32 alone, those of IQ4_NL in bf16 too."""
    runs_here(isa)
    turn = CODEBOOKS.index(format) + TIERS.index(isa)
    for i, activation in enumerate(("f32", "bf16", "f16")):
        linear(100, 192, format, activation, i == 1).check(isa, (1, 7, 35)[(turn + i) % 3])


@pytest.mark.parametrize("element", ["f16 : si8", "f8E8M0FNU : f8E4M3FN", "f8E8M0FNU : f8E5M2"])
def test_codes_of_8_bits_without_look_ups_of_bytes(linear, element):
    runs_here("cooperlake")
    for rows in (1, 35):
        linear(70, 64, f"1x32 : {element}", "bf16").check("cooperlake", rows)


@pytest.mark.parametrize("isa", TIERS)
def test_bf16_output_rounds_to_nearest_even(linear, isa):
    """y[0, n] = scale[n]: ties, bf16's subnormals, infinity, overflow, and a NaN of all ones that
    must stay NaN."""
    runs_here(isa)
    layer = linear(64, 32, "1x32 : f32 : ui1", "bf16")
    ties = 1 + torch.arange(52) * 2.0**-8
    subnormals = torch.arange(8) * 1.25 * 2.0**-133
    nan = torch.tensor([0x7FFFFFFF], dtype=torch.int32).view(torch.float32)
    limits = torch.tensor([float("inf"), 3.4e38, -3.3e38])
    layer.weight.scale = torch.cat([ties, subnormals, limits, nan])[:, None]
    layer.weight.codes = (torch.arange(32) == 0).expand(64, 32).to(torch.uint8)
    x, *parts, y = layer.arguments(1)
    x[:] = 1
    cpu.load(layer.kernel(isa, 1), isa)(x, *parts, y)
    expected = layer.weight.scale.bfloat16().T
    assert torch.equal(y[:, :-1], expected[:, :-1]) and y[0, -1].isnan()
