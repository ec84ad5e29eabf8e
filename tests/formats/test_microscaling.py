"""Microscaling arithmetic: elements and scales, against ml_dtypes, torchao, compressed-tensors."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest
import torch
from compressed_tensors.quantization.utils import mxfp_utils
from torchao.prototype.mx_formats import kernels

from gqc.formats.elements import ELEMENTS, FLOATS, SCALES, Element
from gqc.formats.microscaling import (
    MX_ROUNDING,
    encode,
    mx_scale,
    nvfp4_scale,
    nvfp4_tensor_scale,
)

ML_DTYPES = {
    "f4E2M1FN": ml_dtypes.float4_e2m1fn,
    "f6E2M3FN": ml_dtypes.float6_e2m3fn,
    "f6E3M2FN": ml_dtypes.float6_e3m2fn,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn,
    "f8E5M2": ml_dtypes.float8_e5m2,
}
MX_ELEMENTS = [*FLOATS, ELEMENTS["si8"]]
NAN, INF = math.nan, math.inf

BF16 = torch.arange(1 << 16).to(torch.int16).view(torch.bfloat16).float()
"""All 2^16 bfloat16: zeros, subnormals, infinities and NaNs among them."""

floats = pytest.mark.parametrize("element", FLOATS, ids=lambda e: e.name)
elements = pytest.mark.parametrize("element", MX_ELEMENTS, ids=lambda e: e.name)


def finite_values(element: Element) -> torch.Tensor:
    """In rising order, zero once, what the element rounds to: the least integer is not."""
    values = [v for v in element.values if abs(v) <= element.maximum]
    return torch.tensor(values).unique()


def hard_to_round(element: Element) -> torch.Tensor:
    """Every value, every midpoint of neighbours, and the float32 on both sides of each."""
    values = finite_values(element)
    exact = torch.cat([values, (values[1:] + values[:-1]) / 2])
    inf = torch.tensor(INF)
    return torch.cat([exact, exact.nextafter(inf), exact.nextafter(-inf)])


def samples(element: Element) -> torch.Tensor:
    """Ties, all bfloat16, and as many random float32 bit patterns."""
    random = np.random.default_rng(0).integers(0, 1 << 32, 1 << 16, dtype=np.uint32)
    patterns = torch.from_numpy(random.view(np.float32))
    normal = torch.randn(1 << 14, generator=torch.Generator().manual_seed(0))
    return torch.cat([hard_to_round(element), BF16, patterns, normal * element.maximum / 3])


# Elements


@floats
def test_elements_are_those_of_ml_dtypes(element: Element) -> None:
    """Clamped first, for ml_dtypes does not saturate; NaNs, which it encodes its way, apart."""
    values = samples(element)
    values = values[~values.isnan()]
    clamped = values.clamp(-element.maximum, element.maximum).numpy()
    theirs = clamped.astype(ML_DTYPES[element.name]).view(np.uint8)
    np.testing.assert_array_equal(encode(values, element).numpy(), theirs)


@pytest.mark.parametrize(
    "name, dtype", [("f8E4M3FN", torch.float8_e4m3fn), ("f8E5M2", torch.float8_e5m2)]
)
def test_eight_bit_elements_are_those_of_torch(name: str, dtype: torch.dtype) -> None:
    element = ELEMENTS[name]
    values = samples(element)
    theirs = values.clamp(-element.maximum, element.maximum).to(dtype).view(torch.uint8)
    ours, nan = encode(values, element), values.isnan()
    assert torch.equal(ours[~nan], theirs[~nan])
    assert (ours[nan] == 0x7F).all() and (theirs[nan] & 0x7F == 0x7F).all(), "theirs have signs"


@pytest.mark.parametrize(
    "name, function",
    [
        ("f4E2M1FN", "f32_to_f4_unpacked"),
        ("f6E2M3FN", "f32_to_f6_e2m3_unpacked"),
        ("f6E3M2FN", "f32_to_f6_e3m2_unpacked"),
    ],
)
def test_small_elements_are_those_of_torchao(name: str, function: str) -> None:
    values = samples(ELEMENTS[name])
    values = values[~values.isnan()]
    assert torch.equal(encode(values, ELEMENTS[name]), getattr(kernels, function)(values))


@elements
def test_no_value_is_nearer_and_ties_go_to_even_codes(element: Element) -> None:
    """By search through all values, in float64; no library has MXINT8."""
    values, grid = samples(element)[::5], finite_values(element).double()
    values = torch.cat([hard_to_round(element), values[~values.isnan()]])
    codes = encode(values, element)
    decoded = torch.tensor(element.values).double()[codes.long() % (1 << element.bits)]
    values = values.double().clamp(-element.maximum, element.maximum)
    distance = (values[:, None] - grid).abs()
    nearest = distance.amin(1)
    assert torch.equal((values - decoded).abs(), nearest)
    tied = (distance == nearest[:, None]).sum(1) == 2
    assert tied.sum() >= len(grid) - 1
    assert (codes[tied] % 2 == 0).all()


@elements
def test_every_code_is_the_code_of_its_value(element: Element) -> None:
    codes = torch.arange(1 << element.bits)
    values = torch.tensor(element.values)
    usable = values.abs() <= element.maximum
    assert torch.equal(encode(values, element)[usable].long() % (1 << element.bits), codes[usable])


@elements
def test_what_has_no_value_saturates_or_is_nan(element: Element) -> None:
    codes = encode(torch.tensor([INF, -INF, 3e38, -3e38, NAN]), element).long()
    values = torch.tensor(element.values)[codes % (1 << element.bits)].tolist()
    greatest = element.maximum
    assert values[:4] == [greatest, -greatest, greatest, -greatest]
    assert math.isnan(values[4]) if element.specials != "none" else values[4] == 0


def test_ties_of_e2m1() -> None:
    """The table of OCP MX v1.0, section 5.3.3, and what rounds to it."""
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    values = torch.tensor(ELEMENTS["f4E2M1FN"].values)
    assert values[encode(ties, ELEMENTS["f4E2M1FN"]).long()].tolist() == [0, 1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("name", ["ui4", "si1", "f8E8M0FNU"])
def test_elements_of_one_sign_are_refused(name: str) -> None:
    element = {**ELEMENTS, **SCALES}[name]
    with pytest.raises(ValueError, match=f"{name} has codes of one sign only"):
        encode(torch.ones(1), element)


# E8M0 scales


def amax_samples(element: Element) -> torch.Tensor:
    """Positive finite float32: all bfloat16, and the surroundings of wherever a rule may turn."""
    turns = torch.tensor([1.0, 1.5, 1.75, 1.875, 1.9375, 1.96875, 1.9921875, 127 / 64])
    turns = torch.outer(torch.exp2(torch.arange(-126.0, 128)), turns).flatten()
    near = (turns.view(torch.int32)[:, None] + torch.arange(-2, 3)).flatten()
    random = np.random.default_rng(1).integers(1, 0x7F800000, 1 << 14)
    bits = torch.cat([near, torch.from_numpy(random), torch.tensor([1, 2, 0x400000, 0x7FFFFF])])
    amax = torch.cat([bits.int().view(torch.float32), BF16])
    return amax[(amax > 0) & amax.isfinite()]


def exact_exponent(amax: np.ndarray, element: Element, rounding: str) -> np.ndarray:
    """The rule by its definition, in float64, which holds every number here exactly."""
    mantissa, exponent = np.frexp(amax)  # amax = mantissa · 2^exponent, mantissa in [½, 1)
    emax = math.floor(math.log2(element.maximum))
    match rounding:
        case "floor":
            return exponent - 1 - emax
        case "ceil":
            return np.where(mantissa == 0.5, exponent - 1, exponent) - emax
        case "even":
            bits = element.mantissa if element.exponent else 6
            rounded = np.floor(np.ldexp(mantissa, bits + 1) + 0.5)
            return np.where(rounded == 2 ** (bits + 1), exponent, exponent - 1) - emax
        case "rceil":
            fits = amax <= np.ldexp(element.maximum, exponent - 1 - emax)
            return np.where(fits, exponent - 1 - emax, exponent - emax)
    raise ValueError(rounding)


@elements
@pytest.mark.parametrize("rounding", MX_ROUNDING)
def test_scales_are_what_the_rule_says(element: Element, rounding: str) -> None:
    amax = amax_samples(element)
    exact = exact_exponent(amax.double().numpy(), element, rounding).clip(-127, 127)
    scale = mx_scale(amax, element, rounding)
    np.testing.assert_array_equal(scale.view(torch.uint8).numpy(), exact + 127)


def test_e8m0_is_that_of_ml_dtypes() -> None:
    codes = torch.arange(256).to(torch.uint8)
    theirs = codes.numpy().view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    np.testing.assert_array_equal(codes.view(torch.float8_e8m0fnu).float().numpy(), theirs)


@elements
def test_scales_of_zero_inf_and_nan(element: Element) -> None:
    amax = torch.tensor([0.0, INF, NAN])
    for rounding in MX_ROUNDING:
        zero, inf, nan = mx_scale(amax, element, rounding).view(torch.uint8).tolist()
        assert (zero, nan) == (0, 0xFF)
        assert inf == (254 if rounding == "rceil" else 255 - element.emax)


def amax_below_overflow(element: Element) -> torch.Tensor:
    """Without what compressed-tensors rounds up to inf, and so to a scale of NaN."""
    amax = amax_samples(element)
    return amax[amax < 1.75 * 2.0**127]


@pytest.mark.parametrize("name, bits", [("f4E2M1FN", 4), ("f6E2M3FN", 6)])
def test_even_is_the_rule_of_compressed_tensors(name: str, bits: int) -> None:
    amax = amax_below_overflow(ELEMENTS[name])
    theirs = mxfp_utils.generate_mx_scales(amax, bits).clamp(min=0)
    assert torch.equal(mx_scale(amax, ELEMENTS[name], "even").view(torch.uint8), theirs.byte())


def test_rceil_is_the_rule_of_compressed_tensors_for_e4m3() -> None:
    """But where amax is 448·2^k exactly: theirs turns to the next scale there, ours after it."""
    element = ELEMENTS["f8E4M3FN"]
    amax = amax_below_overflow(element)
    theirs = mxfp_utils.generate_mx_scales(amax, 8).clamp(min=0)
    ours = mx_scale(amax, element, "rceil").view(torch.uint8)
    exactly = (amax.frexp().mantissa == 448 / 512) & (theirs > 0)
    assert exactly.any()
    assert torch.equal(ours[~exactly], theirs[~exactly].byte())
    assert torch.equal(ours[exactly] + 1, theirs[exactly].byte())


# NVFP4 scales

E2M1 = ELEMENTS["f4E2M1FN"]


def test_the_tensor_scale_of_nvfp4() -> None:
    """amax / (448 · 6); non-finite blocks do not count, and zeros have 1."""
    tiny = 2.0**-126
    for amax, scale in [
        ([1.0, 2688.0, 5.0], 1.0),
        ([3.0, INF, NAN, 1.0], np.float32(3) / np.float32(2688)),
        ([0.0, 0.0], 1.0),
        ([NAN, INF], 1.0),
        ([], 1.0),
        ([1e-40], tiny),
        ([2.0**-149], tiny),
    ]:
        assert nvfp4_tensor_scale(torch.tensor(amax), E2M1).item() == scale, amax


def test_block_scales_of_nvfp4() -> None:
    amax = torch.tensor([0.0, 1e-9, 6 * 2.0**-9, 6.0, 2688.0, 3000.0, INF, NAN])
    expected = torch.tensor([2.0**-9, 2.0**-9, 2.0**-9, 1.0, 448, 448, 448, NAN])
    for tensor_scale in (None, torch.tensor(1.0)):
        scale = nvfp4_scale(amax, E2M1, tensor_scale)
        assert scale.dtype == torch.float8_e4m3fn
        torch.testing.assert_close(scale.float(), expected, rtol=0, atol=0, equal_nan=True)
    halved = nvfp4_scale(amax[3:5], E2M1, torch.tensor(2.0)).float()
    assert halved.tolist() == [0.5, 224]
