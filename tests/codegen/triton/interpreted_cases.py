"""Printed kernels in Triton's interpreter, against float64 of the exactly dequantized weights.

The interpreter must be chosen before Triton is imported: test_interpreter.py runs this file in a
process of its own.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from xdsl.dialects.builtin import MemRefType
from xdsl.parser import Parser

from gqc.codegen.triton import load
from gqc.codegen.triton.interpreter import interpreting
from gqc.dialects.gq import BlockScaledType
from gqc.dialects.interpret import interpreter
from gqc.dialects.text import context, parse_ir
from gqc.dialects.tile import KernelOp, shape_of
from gqc.dialects.tile_interpreter import run_kernel
from gqc.dialects.torch_types import DTYPES
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import Element
from gqc.formats.layouts import LAYOUTS

assert interpreting(), "run through test_interpreter.py"

LIT = Path(__file__).parents[2] / "lit" / "codegen" / "triton"
WRITTEN_KERNELS = [
    p
    for p in sorted(LIT.glob("*.mlir"))
    if "\ntile.kernel @" in p.read_text() and "tile.qcast" not in p.read_text()
]
"""FileCheck tests that begin with a kernel, but for quantizers; the others come from a whole
pipeline."""
ACTIVATIONS = {"f16": torch.float16, "bf16": torch.bfloat16}


def finite(codes: torch.Tensor, element: Element) -> torch.Tensor:
    """The codes, those of infinities and NaNs replaced by 1."""
    special = [code for code, value in enumerate(element.values) if not math.isfinite(value)]
    return torch.where(torch.isin(codes, torch.tensor(special)), 1, codes)


def random_weight(type_: BlockScaledType, n: int, k: int) -> BlockScaled:
    """Codes over all their range; scales and zero points of few bits, which float32 keeps exact.

    A tensor scale is such that the weight still fits bfloat16.
    """
    generator = torch.Generator().manual_seed(n + k)
    element, groups = type_.format, k // type_.block_of((n, k))[1]
    low, count = int(element.minimum) if element.is_integer else 0, 1 << element.bits
    codes = torch.randint(low, low + count, (n, k), generator=generator)
    scale = 1 + torch.randint(0, 1 << 10, (n, groups), generator=generator) / (1 << 10)
    if str(type_.scale) == "f8E8M0FNU":
        exponent = torch.randint(-6, 1, (n, groups), generator=generator) - element.emax
        scale = 2.0**exponent
    zero = torch.randint(-32, 32, (n, groups), generator=generator) / 16
    if type_.zero_mode.data == "quantized":
        zero = torch.randint(0, count, (n, groups), generator=generator).to(torch.uint8)
    elif type_.has_zero:
        zero = zero.to(DTYPES[type_.zero])
    return BlockScaled(
        type_,
        finite(codes, element).to(torch.int8 if element.is_signed_integer else torch.uint8),
        scale.to(DTYPES[type_.scale]),
        zero if type_.has_zero else None,
        torch.tensor(0.375) if type_.has_tensor_scale else None,
    )


Arrays = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def run(
    kernel: KernelOp, weight: BlockScaled, rows: int, act: str = "f16", bias: bool = False
) -> Arrays:
    """x, bias and y of a kernel on random activations; a kernel without bias has one of zeros."""
    n, k = weight.codes.shape
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, k, generator=generator).to(ACTIVATIONS[act])
    b = torch.randn(n, generator=generator).to(ACTIVATIONS[act]) * bias
    y = torch.full((rows, n), torch.nan, dtype=ACTIVATIONS[act])
    parts = LAYOUTS["k_words"].pack(weight, 1)
    load(kernel)(x, *parts, *([b] if bias else []), y)
    return x, b, y


def excess(arrays: Arrays, weight: BlockScaled) -> float:
    """The largest error of y in units of what its rounding and float32 sums may cost.

    The kernel rounds weights to the activations' type, which is part of what it computes; y is
    rounded once, and K float32 additions each cost up to 2^-24 of the sum of magnitudes.
    """
    x, bias, y = arrays
    x, w = x.double(), weight.dequantize(torch.float64).to(y.dtype).double()
    expected = x @ w.T + bias.double()
    unit = torch.finfo(y.dtype).eps / 2
    magnitude = x.abs() @ w.abs().T + bias.double().abs()
    bound = unit * expected.abs() + (x.shape[1] + 2) * 2.0**-24 * magnitude
    return float(((y.double() - expected).abs() / bound).max())


def type_of(text: str) -> BlockScaledType:
    type_ = Parser(context(), f"!gq.block_scaled<{text}>").parse_type()
    assert isinstance(type_, BlockScaledType)
    return type_


FORMATS = [
    (bits, form, act)
    for bits in (1, 2, 3, 4, 7, 8)
    for form, act in [
        ("1x32 : f16 : si{b}", "f16"),
        ("1x16 : f16 : ui{b}, zero = f16, zero_mode = original", "bf16"),
        ("1x128 : bf16 : ui{b}, zero = bf16, zero_mode = rescale", "f16"),
        ("1x64 : f32 : ui{b}, zero = ui{b}, zero_mode = quantized", "bf16"),
    ]
]


@pytest.mark.parametrize(("bits", "form", "act"), FORMATS)
def test_every_format(build, bits: int, form: str, act: str) -> None:
    text = form.format(b=bits)
    weight = random_weight(type_of(text), 72, 256)
    kernel = build(text, 72, 256, act=act, bias=True)[0]
    assert excess(run(kernel, weight, 5, act, bias=True), weight) <= 1


MICROSCALING = [
    "1x32 : f8E8M0FNU : f4E2M1FN",
    "1x32 : f8E8M0FNU : f6E2M3FN",
    "1x32 : f8E8M0FNU : f6E3M2FN",
    "1x32 : f8E8M0FNU : f8E4M3FN",
    "1x32 : f8E8M0FNU : f8E5M2",
    "1x32 : f8E8M0FNU : si8",
    "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
]


FP8 = ["1x128 : f32 : f8E4M3FN", "1x? : bf16 : f8E4M3FN"]
CODEBOOKS = ["1x32 : f32 : nf4", "1x? : f16 : iq4_nl", "1x16 : bf16 : fp4_bnb"]


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize("text", [*MICROSCALING, *FP8, *CODEBOOKS])
def test_microscaling_weights(build, text: str, act: str) -> None:
    """Rows, columns and K that fill no tile; every finite code."""
    k = 384 if "1x128" in text else 160
    weight = random_weight(type_of(text), 37, k)
    kernel = build(text, 37, k, act=act, bias=True)[0]
    assert excess(run(kernel, weight, 5, act, bias=True), weight) <= 1


@pytest.mark.parametrize("text", MICROSCALING)
def test_every_code_and_scale_is_exact(build, text: str) -> None:
    """y[0, n] = code · scale, for every code beside every scale: subnormals, infinities and NaN."""
    type_ = type_of(text)
    weight = random_weight(type_, 256, 32)
    every = torch.arange(256, dtype=torch.uint8)
    codes = (
        every.view(torch.int8) if type_.format.is_integer else every & (1 << type_.format.bits) - 1
    )
    weight.codes[:] = 0
    weight.codes[:, 0], weight.codes[:, 1] = codes, 3
    for scale in (every, torch.full_like(every, 0x38)):
        weight.scale[:] = scale.view(weight.scale.dtype)[:, None]
        kernel = build(text, 256, 32, act="bf16")[0]
        for column in (0, 1):
            x = torch.zeros(1, 32, dtype=torch.bfloat16)
            x[0, column] = 1
            y = torch.empty(1, 256, dtype=torch.bfloat16)
            load(kernel)(x, *LAYOUTS["k_words"].pack(weight, 1), y)
            values = weight.dequantize(torch.float64)[:, column]
            expected = values.float().bfloat16()
            # The dot makes NaN of an infinity in a column whose x is 0.
            whole = weight.dequantize(torch.float64).bfloat16().isfinite().all(1)
            torch.testing.assert_close(y[0][whole], expected[whole], rtol=0, atol=0)
            assert not y[0][~whole].isfinite().any()


INT4 = "1x32 : f16 : ui4, zero = f16, zero_mode = original"
ROW3 = "1x? : f16 : ui3, zero = ui3, zero_mode = quantized"


@pytest.mark.parametrize("rows", [0, 1, 16, 17, 70])
@pytest.mark.parametrize("bucket", [0, 1, 2])
def test_any_number_of_rows(build, rows: int, bucket: int) -> None:
    weight = random_weight(type_of(INT4), 128, 128)
    kernel = build(INT4, 128, 128)[bucket]
    if rows == 0:
        y = torch.empty(0, 128, dtype=torch.float16)
        load(kernel)(torch.empty(0, 128), *LAYOUTS["k_words"].pack(weight, 1), y)
    else:
        assert excess(run(kernel, weight, rows), weight) <= 1


@pytest.mark.parametrize("act", ["f16", "bf16"])
@pytest.mark.parametrize(("n", "k"), [(1, 32), (63, 96), (130, 160), (200, 32)])
def test_ragged_columns_and_tails_of_k(build, n: int, k: int, act: str) -> None:
    for text, kernel in [(INT4, 0), (INT4, 1), (ROW3, 0), (ROW3, 2)]:
        weight = random_weight(type_of(text), n, k)
        arrays = run(build(text, n, k, act=act)[kernel], weight, 3, act)
        assert excess(arrays, weight) <= 1, text


@pytest.mark.parametrize("k", [36, 100])
def test_a_row_that_ends_inside_a_word(build, k: int) -> None:
    for text in (ROW3, "1x? : f16 : si1", "1x? : f32 : ui8, zero = f32, zero_mode = rescale"):
        weight = random_weight(type_of(text), 40, k)
        assert excess(run(build(text, 40, k)[0], weight, 3), weight) <= 1, text


def test_the_bound_sees_small_faults(build) -> None:
    """Two codes in each other's place, one scale 1 % off, one zero point 1/16 off."""
    weight = random_weight(type_of(INT4), 40, 256)
    weight.codes[0, 0], weight.codes[0, 1] = 1, 0
    assert weight.zero is not None
    arrays = run(build(INT4, 40, 256)[0], weight, 5)
    assert excess(arrays, weight) <= 1
    codes, scale, zero = weight.codes.clone(), weight.scale.clone(), weight.zero.clone()
    codes[0, 0], codes[0, 1] = 0, 1
    scale[0, 0] *= 1.01
    zero[0, 0] += 1 / 16
    for fault in ({"codes": codes}, {"scale": scale}, {"zero": zero}):
        assert excess(arrays, replace(weight, **fault)) > 5, fault.keys()


@pytest.mark.parametrize("path", WRITTEN_KERNELS, ids=lambda p: p.stem)
def test_kernels_of_the_lit_tests_mean_what_the_dialect_says(path: Path) -> None:
    """Also ops that no pass makes for a GPU: sums, unpacking along rows, a dot in float32."""
    generator = torch.Generator().manual_seed(0)
    kernel = next(op for op in parse_ir(path.read_text()).ops if isinstance(op, KernelOp))
    arrays = []
    for arg in kernel.body.block.args:
        assert isinstance(arg.type, MemRefType)
        shape, dtype = [37 if n < 0 else n for n in shape_of(arg)], DTYPES[arg.type.element_type]
        words = torch.randint(-(1 << 31), 1 << 31, shape, generator=generator)
        arrays.append(words.to(dtype) if dtype == torch.int32 else (words / (1 << 31)).to(dtype))
    expected = torch.empty_like(arrays[-1])
    run_kernel(interpreter(parse_ir(path.read_text()), {}), kernel, [*arrays[:-1], expected])
    load(kernel)(*arrays)
    rounding = torch.finfo(expected.dtype).eps
    torch.testing.assert_close(arrays[-1], expected, rtol=rounding, atol=1e-3)
