"""Microscaling: codes and scales of other libraries, the specification's rule, bad input."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.quant_args import QuantizationArgs, QuantizationType
from compressed_tensors.quantization.utils.helpers import calculate_qparams
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchao.prototype.mx_formats import kernels, mx_tensor, nvfp4_tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from xdsl.parser import Parser

from gqc.dialects.gq import BlockScaledType
from gqc.dialects.interpret import run
from gqc.dialects.text import context, parse_ir
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import ELEMENTS, FLOATS
from gqc.formats.microscaling import MX_ROUNDING
from gqc.quantizers import MICROSCALING_RULES, microscaling

NAN, INF = math.nan, math.inf
NAMES = [*(e.name for e in FLOATS), "si8"]

names = pytest.mark.parametrize("name", NAMES)
float_names = pytest.mark.parametrize("name", NAMES[:-1])
roundings = pytest.mark.parametrize("rounding", MX_ROUNDING)


def parse(text: str) -> BlockScaledType:
    type_ = Parser(context(), f"!gq.block_scaled<{text}>").parse_type()
    assert isinstance(type_, BlockScaledType)
    return type_


MX = {name: parse(f"1x32 : f8E8M0FNU : {name}") for name in NAMES}
NVFP4 = parse("1x16 : f8E4M3FN : f4E2M1FN, global = f32")
ONE_LEVEL = parse("1x16 : f8E4M3FN : f4E2M1FN")


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def all_bfloat16(block: int) -> torch.Tensor:
    """A row for each bfloat16, [2^16, block]: it comes first, and no other magnitude is greater."""
    first = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16)[:, None]
    rest = torch.rand(1 << 16, block - 1, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return torch.cat([first, (rest * first.float()).bfloat16()], 1)


def with_ties(type_: BlockScaledType, block: int) -> torch.Tensor:
    """Rows in which elements lie on, and halfway between, values of the format, at many scales."""
    values = torch.tensor([v for v in type_.format.values if math.isfinite(v)]).unique()
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2])
    pick = torch.randint(len(exact), (2048, block), generator=torch.Generator().manual_seed(0))
    return exact[pick] * torch.exp2(torch.arange(2048) % 64 - 32.0)[:, None]


INPUTS: dict[str, Callable[[BlockScaledType, int], torch.Tensor]] = {
    "all_bfloat16": lambda type_, block: all_bfloat16(block),
    "ties": with_ties,
    "float32": lambda type_, block: random(1024, 4 * block),
    "bfloat16": lambda type_, block: random(1024, 4 * block).bfloat16(),
    "mixed": lambda type_, block: torch.arange(1 << 16).short().view(torch.bfloat16).view(-1, 32),
}
inputs = pytest.mark.parametrize("data", INPUTS)


def scale_bytes(quantized: BlockScaled) -> torch.Tensor:
    return quantized.scale.view(torch.uint8)


def spread(part: torch.Tensor, block: int = 32) -> torch.Tensor:
    return part.repeat_interleave(block, -1)


def assert_same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


# torchao

TORCHAO = {
    "f4E2M1FN": torch.float4_e2m1fn_x2,
    "f6E2M3FN": "fp6_e2m3",
    "f6E3M2FN": "fp6_e3m2",
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
}


@float_names
@roundings
@inputs
def test_mx_is_torchaos(name: str, rounding: str, data: str) -> None:
    """±inf and NaN among it.

    But for codes under byte 0: torchao divides by 2^-126 there, or 1 in rceil, and multiplies by
    2^-127. And codes under NaN have no meaning.
    """
    weight = INPUTS[data](MX[name], 32)
    mode = ScaleCalculationMode[rounding.upper()]
    scale, codes = mx_tensor.to_mx(weight, TORCHAO[name], 32, mode)
    quantized = microscaling(weight, MX[name], rounding)
    assert torch.equal(scale_bytes(quantized), scale.view(torch.uint8))
    values = mx_tensor.to_dtype(codes, scale, TORCHAO[name], 32, torch.float32)
    codes = kernels.unpack_uint4(codes) if "f4" in name else codes.view(torch.uint8)
    comparable = spread((scale_bytes(quantized) > 0) & (scale_bytes(quantized) < 255))
    assert torch.equal(quantized.codes[comparable], codes.view(weight.shape)[comparable])
    seen = comparable | spread(scale_bytes(quantized) == 255)
    assert_same(quantized.dequantize()[seen], values[seen])


@inputs
@pytest.mark.parametrize("tensor_scale", [None, 1.0, 0.37, 2.0**-9])
def test_nvfp4_is_torchaos_but_for_ties(data: str, tensor_scale: float | None) -> None:
    """It multiplies by a rounded reciprocal, so elements beside a tie may fall on its other side.

    And its scales are at least 2^-6, ours 2^-9.
    """
    weight = INPUTS[data](NVFP4, 16)
    given = None if tensor_scale is None else torch.tensor(tensor_scale)
    quantized = microscaling(weight, NVFP4, "amax", given)
    scale, codes = nvfp4_tensor.nvfp4_quantize(weight, 16, quantized.tensor_scale)
    normal = quantized.scale.float().nan_to_num(1) >= 2.0**-6
    assert torch.equal(scale_bytes(quantized)[normal], scale.view(torch.uint8)[normal])
    assert (scale.float()[~normal] == 2.0**-6).all()
    assert quantized.tensor_scale is not None
    step = (quantized.scale.float() * quantized.tensor_scale).double()
    exact = (weight.double() / spread(step, 16)).abs()
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0], dtype=torch.float64)
    beside = ((exact[..., None] - ties).abs() < ties * 2.0**-22).any(-1)
    theirs = kernels.unpack_uint4(codes).view(weight.shape).int()
    comparable = spread(normal & ~quantized.scale.float().isnan(), 16)
    apart = (quantized.codes.int() - theirs).abs()[comparable]
    assert torch.equal(apart.clamp(max=1), apart)
    assert beside[comparable][apart > 0].all()


def test_the_tensor_scale_of_nvfp4_is_torchaos() -> None:
    weight = random(64, 64)
    theirs = nvfp4_tensor.per_tensor_amax_to_scale(weight.abs().amax())
    quantized = microscaling(weight, NVFP4, "amax")
    assert quantized.tensor_scale is not None and torch.equal(quantized.tensor_scale, theirs)


@inputs
def test_nvfp4_of_one_level_has_a_tensor_scale_of_one(data: str) -> None:
    weight = INPUTS[data](ONE_LEVEL, 16)
    one, two = (
        microscaling(weight, ONE_LEVEL, "amax"),
        microscaling(weight, NVFP4, "amax", torch.tensor(1.0)),
    )
    assert one.tensor_scale is None
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(scale_bytes(one), scale_bytes(two))


# compressed-tensors


def compressed_tensors(weight: torch.Tensor, bits: int, **options: Any) -> tuple[Any, Any]:
    """(scales, values of codes) as it quantizes in groups of `group_size`."""
    global_scale = options.pop("global_scale", None)
    float_ = QuantizationType.FLOAT
    args = QuantizationArgs(num_bits=bits, type=float_, symmetric=True, **options)
    blocks = weight.unflatten(1, (-1, options["group_size"]))
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale)
    return scale, quantize(weight, scale, zero, args, global_scale=global_scale)


@pytest.mark.parametrize(
    "name, rounding", [("f4E2M1FN", "even"), ("f6E2M3FN", "even"), ("f8E4M3FN", "rceil")]
)
@inputs
def test_mx_is_that_of_compressed_tensors(name: str, rounding: str, data: str) -> None:
    """For blocks whose scales it can say: finite, below where rounding overflows, above 0's."""
    weight = INPUTS[data](MX[name], 32).float().view(-1, 32)
    amax = weight.abs().amax(-1)
    weight = weight[(amax >= 2.0**-100) & (amax < 1.75 * 2.0**127)]
    quantized = microscaling(weight, MX[name], rounding)
    bits = ELEMENTS[name].bits
    scale, values = compressed_tensors(
        weight, bits, strategy="group", group_size=32, scale_dtype=torch.uint8
    )
    # It turns to the next scale where amax is 448·2^k exactly.
    turned = scale != quantized.scale.float()
    exactly = weight.unflatten(1, (-1, 32)).abs().amax(-1) == 448 * quantized.scale.float()
    assert torch.equal(turned, exactly & (name == "f8E4M3FN"))
    assert_same(quantized.values(torch.float32)[spread(~turned)], values[spread(~turned)])


@pytest.mark.parametrize("exponent", [-9, 0, 3])
def test_nvfp4_is_that_of_compressed_tensors(exponent: int) -> None:
    """Its global scale is a divisor, 2688/amax: both are exact if amax is 2688·2^k."""
    weight = random(512, 64)
    weight = weight / weight.abs().amax() * 0.99 * 2688 * 2.0**exponent
    weight[0, 0] = 2688 * 2.0**exponent
    quantized = microscaling(weight, NVFP4, "amax")
    assert quantized.tensor_scale is not None and quantized.tensor_scale.item() == 2.0**exponent
    scale, values = compressed_tensors(
        weight,
        4,
        strategy="tensor_group",
        group_size=16,
        scale_dtype=torch.float8_e4m3fn,
        global_scale=1 / quantized.tensor_scale,
    )
    assert torch.equal(scale.float(), quantized.scale.float())
    assert_same(quantized.values(torch.float32), values)


# The rules, written again


def exact_mx(weight: np.ndarray, name: str) -> np.ndarray:
    """What microxcaling (round="even") makes of rows of 32, by its definition and in float64.

    The shared exponent is floor(log2 amax) − emax, at least −127; the element is rounded to the
    bits that its own exponent leaves it, and clamped.
    """
    element = ELEMENTS[name]
    fraction, lowest, bias = element.mantissa, 1 - element.bias, 0
    if element.is_integer:
        fraction, lowest, bias = 6, 0, 6  # Q1.6, that is the integer · 2^-6
    greatest = element.maximum / 2**bias
    amax = np.abs(weight).max(-1, keepdims=True)
    shared = np.frexp(np.where(amax == 0, 2.0**-126, amax))[1] - 1
    shared = np.maximum(shared - math.floor(math.log2(greatest)), -127)
    scaled = np.ldexp(weight, -shared)
    private = np.maximum(np.frexp(np.where(scaled == 0, 1, scaled))[1] - 1, lowest)
    private = np.where(element.is_integer, 0, private)
    rounded = np.ldexp(np.rint(np.ldexp(scaled, fraction - private)), private - fraction)
    return np.ldexp(np.clip(rounded, -greatest, greatest), shared)


@names
@inputs
def test_floor_is_microxcalings(name: str, data: str) -> None:
    """For finite blocks: it makes the whole block NaN if there is an inf in it."""
    weight = INPUTS[data](MX[name], 32).float().view(-1, 32)
    finite = weight.isfinite().all(-1)
    ours = microscaling(weight, MX[name], "floor").dequantize(torch.float64)[finite].numpy()
    weight = weight[finite]
    theirs = exact_mx(weight.double().numpy(), name)
    if name == "si8":  # our least scale, 2^-127, is the specification's 2^-121
        tiny = (weight.abs().amax(-1) < 2.0**-121).numpy()
        assert np.abs(ours[tiny] - weight[tiny].double().numpy()).max(initial=0) <= 2.0**-128
        ours, theirs = ours[~tiny], theirs[~tiny]
    np.testing.assert_array_equal(ours, theirs)


def test_nvfp4_divides() -> None:
    """As ModelOpt does: w / (s·g) in float32, then to nearest even, here by ml_dtypes."""
    weight = torch.cat([random(1024, 64).bfloat16().float(), with_ties(NVFP4, 64)])
    quantized = microscaling(weight, NVFP4, "amax")
    assert quantized.tensor_scale is not None
    step = spread(quantized.scale.float(), 16).numpy() * quantized.tensor_scale.numpy()
    scaled = (weight.numpy() / step).clip(-6, 6)
    theirs = scaled.astype(ml_dtypes.float4_e2m1fn).view(np.uint8)
    np.testing.assert_array_equal(quantized.codes.numpy(), theirs)


# Properties


@st.composite
def blocks(draw: st.DrawFn) -> torch.Tensor:
    """[4, 64] of any magnitude, with outliers and zeros."""
    weight = random(4, 64, seed=draw(st.integers(0, 10_000)))
    weight *= torch.exp2(random(4, 64, seed=1) * draw(st.sampled_from([0, 1, 8])))
    weight[draw(st.integers(0, 3)), draw(st.integers(0, 63))] *= draw(st.sampled_from([0, 100.0]))
    return weight


rules = st.tuples(st.sampled_from(NAMES), st.sampled_from(list(MX_ROUNDING)))


@settings(max_examples=60, deadline=None)
@given(weight=blocks(), rule=rules, power=st.integers(-60, 60))
def test_a_power_of_two_only_moves_the_scale(
    weight: torch.Tensor, rule: tuple[str, str], power: int
) -> None:
    name, rounding = rule
    ours, moved = (microscaling(w, MX[name], rounding) for w in (weight, weight * 2.0**power))
    assert torch.equal(ours.codes, moved.codes)
    assert torch.equal(scale_bytes(ours).int() + power, scale_bytes(moved).int())


@settings(max_examples=60, deadline=None)
@given(weight=blocks(), rule=rules)
def test_what_was_quantized_is_a_fixed_point(weight: torch.Tensor, rule: tuple[str, str]) -> None:
    name, rounding = rule
    values = microscaling(weight, MX[name], rounding).dequantize()
    assert torch.equal(microscaling(values, MX[name], rounding).dequantize(), values)


@settings(max_examples=60, deadline=None)
@given(weight=blocks(), rule=rules)
def test_signs_are_kept_apart(weight: torch.Tensor, rule: tuple[str, str]) -> None:
    name, rounding = rule
    ours, negated = (microscaling(w, MX[name], rounding) for w in (weight, -weight))
    assert torch.equal(ours.dequantize(), -negated.dequantize())


@settings(max_examples=60, deadline=None)
@given(weight=blocks(), name=st.sampled_from(NAMES))
def test_rceil_is_the_least_scale_that_saturates_nothing(weight: torch.Tensor, name: str) -> None:
    quantized = microscaling(weight, MX[name], "rceil")
    amax = weight.unflatten(1, (-1, 32)).abs().amax(-1)
    limit = quantized.scale.float() * ELEMENTS[name].maximum
    assert (amax <= limit).all() and (amax > limit / 2).all()
    ceil = scale_bytes(microscaling(weight, MX[name], "ceil"))
    floor = scale_bytes(microscaling(weight, MX[name], "floor"))
    assert ((floor <= scale_bytes(quantized)) & (scale_bytes(quantized) <= ceil)).all()


@settings(max_examples=60, deadline=None)
@given(weight=blocks(), rule=st.sampled_from([*NAMES, "nvfp4"]), bad=st.sampled_from([NAN, -INF]))
def test_a_bad_element_stays_in_its_block(weight: torch.Tensor, rule: str, bad: float) -> None:
    spoilt = weight.clone()
    spoilt[1, 40] = bad
    if rule == "nvfp4":
        ours, other = (microscaling(w, NVFP4, "amax") for w in (weight, spoilt))
        block, least = slice(32, 48), -2688 * other.tensor_scale.item()  # pyright: ignore
        assume(torch.equal(ours.tensor_scale, other.tensor_scale))  # pyright: ignore
    else:
        ours, other = (microscaling(w, MX[rule], "floor") for w in (weight, spoilt))
        block, least = slice(32, 64), -INF
    before, after = ours.dequantize(), other.dequantize()
    if math.isnan(bad):
        assert after[1, block].isnan().all()
    else:
        assert after[1, 40].item() == pytest.approx(least, rel=1e-6)
        assert after[1, block].isinf().sum() <= 1 and not after.isnan().any()
    after[1, block] = before[1, block]
    assert torch.equal(before, after)


@settings(max_examples=60, deadline=None)
@given(weight=blocks())
def test_nvfp4_errs_by_half_a_step(weight: torch.Tensor) -> None:
    """Of E2M1 (1 of 6 at most), and of E4M3 in the scale (1/16), where that one is normal."""
    quantized = microscaling(weight, NVFP4, "amax")
    assert quantized.tensor_scale is not None
    amax = spread(weight.unflatten(1, (-1, 16)).abs().amax(-1), 16)
    normal = spread(quantized.scale.float() >= 2.0**-6, 16)
    assume(normal.any())
    error = (quantized.dequantize() - weight).abs()
    assert (error <= amax * (1 / 6 + 1 / 16) * 1.07)[normal].all()


# What it takes


def test_a_qcast_by_microscaling_is_interpreted() -> None:
    for type_, rule in ((MX["f6E3M2FN"], "rceil"), (NVFP4, "amax")):
        spelt = f"tensor<8x64x{type_}>"
        module: Any = parse_ir(f"""
        func.func @forward(%x : tensor<?x64xf32>) -> tensor<?x8xf32> {{
          %w = gq.weight @w : tensor<8x64xf32>
          %q = gq.qcast %w by "microscaling" "{rule}" : tensor<8x64xf32> -> {spelt}
          %y = gq.matmul_t %x, %q : (tensor<?x64xf32>, {spelt}) -> tensor<?x8xf32>
          func.return %y : tensor<?x8xf32>
        }}
        """)
        weight, x = random(8, 64), random(3, 64, seed=1)
        (y,) = run(module, {"w": weight}, (x,))
        dense = microscaling(weight, type_, rule).dequantize()
        assert not torch.equal(dense, weight)
        assert torch.equal(y, torch.nn.functional.linear(x, dense))


def test_any_rank_and_float_is_quantized_along_its_last_dimension() -> None:
    weight = torch.nn.Parameter(random(2, 3, 64).double())
    type_ = parse("1x1x32 : f8E8M0FNU : f4E2M1FN")
    cube, flat = (
        microscaling(weight, type_, "floor"),
        microscaling(weight.detach().float().view(6, 64), MX["f4E2M1FN"], "floor"),
    )
    assert cube.codes.shape == (2, 3, 64) and cube.scale.shape == (2, 3, 2)
    assert torch.equal(cube.codes.view(6, 64), flat.codes)
    assert torch.equal(scale_bytes(cube).view(6, 2), scale_bytes(flat))


def test_no_rows_are_no_blocks() -> None:
    for type_, rule in ((MX["si8"], "floor"), (NVFP4, "amax")):
        quantized = microscaling(torch.zeros(0, 64), type_, rule)
        assert quantized.codes.shape == (0, 64)
        assert quantized.dequantize().shape == (0, 64)


@names
def test_zeros_stay_zeros(name: str) -> None:
    weight = torch.tensor([0.0, -0.0]).repeat(2, 32)
    for type_, rule in ((MX[name], "even"), (NVFP4, "amax"), (ONE_LEVEL, "amax")):
        assert (microscaling(weight, type_, rule).dequantize() == 0).all()


@pytest.mark.parametrize(
    "type_, rule, options, message",
    [
        ("1x32 : f16 : f4E2M1FN", "floor", {}, "scales in f8E8M0FNU, f8E4M3FN, f32, not f16"),
        (
            "1x32 : f8E8M0FNU : f4E2M1FN",
            "amax",
            {},
            "'amax' for f8E8M0FNU: choose.*floor",
        ),
        ("1x16 : f8E4M3FN : f4E2M1FN", "even", {}, "'even' for f8E4M3FN: choose.*amax"),
        ("1x32 : f8E8M0FNU : ui4", "floor", {}, "ui4 has codes of one sign only"),
        (
            "1x32 : f8E8M0FNU : si8, zero = f16, zero_mode = rescale",
            "floor",
            {},
            "no zero points",
        ),
        ("1x32 : f8E8M0FNU : f4E2M1FN, global = f32", "floor", {}, "without a tensor scale"),
        ("1x16 : f8E4M3FN : f4E2M1FN", "amax", {"tensor_scale": torch.ones(())}, "type has none"),
        (
            "2x16 : f8E8M0FNU : f4E2M1FN",
            "floor",
            {},
            r"last dimension.*48\] in blocks of 2x16",
        ),
        ("1x32 : f8E8M0FNU : f4E2M1FN", "floor", {}, r"48\] in blocks of 1x32"),
    ],
)
def test_what_does_not_go_together_is_refused(
    type_: str, rule: str, options: dict[str, Any], message: str
) -> None:
    columns = 48 if "blocks of" in message else 64
    with pytest.raises(ValueError, match=message):
        microscaling(random(4, columns), parse(type_), rule, **options)


def test_every_rule_of_the_table_is_a_scale_rule() -> None:
    assert MICROSCALING_RULES.keys() == {"f8E8M0FNU", "f8E4M3FN", "f32"}
    assert list(MICROSCALING_RULES["f8E8M0FNU"]) == ["floor", "even", "ceil", "rceil"]


def test_integers_under_f32_scales() -> None:
    """amax / 127, nearest codes, ties to even; zeros, and what is below float32's normal numbers,
    under its least normal one; inf as its greatest number; NaN over its block."""
    values = [[127.0, 0.5, 1.5, -2.5], [0.0, -0.0, 0.0, 0.0], [1e-40, 0.0, 0.0, 0.0]]
    values += [[INF, 1.0, -INF, 1e38], [NAN, 1.0, 2.0, 3.0], [-3e38, 3e38, 0.0, 1e38]]
    found = microscaling(torch.tensor(values), parse("1x4 : f32 : si8"), "amax")
    greatest = torch.finfo(torch.float32).max
    scale = [1.0, 2.0**-126, 2.0**-126, greatest / 127, NAN, 3e38 / 127]
    torch.testing.assert_close(
        found.scale[:, 0], torch.tensor(scale), rtol=1e-7, atol=0, equal_nan=True
    )
    assert found.codes.dtype == torch.int8
    assert found.codes[:4].tolist() == [[127, 0, 2, -2], [0] * 4, [0] * 4, [127, 0, -127, 37]]
    assert found.codes[5].tolist() == [-127, 127, 0, 42] and found.dequantize()[4].isnan().all()


@pytest.mark.parametrize("element", ["nf4", "fp4_bnb", "iq4_nl"])
def test_codes_of_a_codebook_are_the_nearest(element: str) -> None:
    weight = random(16, 128)
    quantized = microscaling(weight, parse(f"1x64 : f32 : {element}"), "amax")
    table = torch.tensor(quantized.type.format.values, dtype=torch.float64)
    amax = weight.abs().unflatten(1, (2, 64)).amax(-1)
    assert torch.equal(quantized.scale, amax / quantized.type.format.maximum)
    scale = quantized.scale.double().repeat_interleave(64, 1).unsqueeze(-1)
    errors = (table * scale - weight.double().unsqueeze(-1)).abs()
    found = errors.gather(-1, quantized.codes.long().unsqueeze(-1)).squeeze(-1)
    assert (found <= errors.amin(-1) * (1 + 1e-6) + 1e-9).all()
    assert len(quantized.codes.unique()) > 12


BITSANDBYTES = [
    0,
    0,
    1,
    1,
    1,
    2,
    2,
    2,
    3,
    3,
    4,
    4,
    4,
    5,
    5,
    5,
    6,
    6,
    6,
    6,
    6,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    7,
    8,
    8,
    8,
    8,
    8,
    9,
    9,
    9,
    10,
    10,
    10,
    11,
    11,
    12,
    12,
    13,
    13,
    14,
    14,
    14,
    15,
]


def test_nf4_is_bitsandbytes() -> None:
    """Codes and scales that bitsandbytes 0.50 made of this block."""
    weight = torch.arange(-32, 32).float().reshape(1, 64) ** 3 / 4096
    quantized = microscaling(weight, parse("1x64 : f32 : nf4"), "amax")
    assert quantized.scale.item() == 8.0
    assert quantized.codes.flatten().tolist() == BITSANDBYTES
