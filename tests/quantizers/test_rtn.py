"""Round-to-nearest: nearest codes, exact grids, the scale rules of other libraries, bad weights."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torchao.quantization import quant_primitives

from gqc.formats.block_scaled import BlockScaled
from gqc.quantizers import QUANTIZERS, SCALE_RULES, rtn, underflow
from gqc.quantizers.rtn import rtn_rows
from gqc.schemes import Scheme, preset

rtn_file = sys.modules["gqc.quantizers.rtn"]  # the package has a function of this name

SYMMETRIC = ("half", "restricted", "no_clip")
ZERO_POINTS = (("rescale", "f16"), ("rescale", "f32"), ("original", "f16"), ("quantized", "ui"))
EPSILON = {"f16": 2.0**-11, "bf16": 2.0**-8, "f32": 2.0**-24}


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    """Any integer scheme, symmetric or with any zero point."""
    group = draw(st.sampled_from([16, 32, None]))
    scale = draw(st.sampled_from(["f16", "bf16", "f32"]))
    if draw(st.booleans()):
        bits = draw(st.sampled_from([2, 3, 4, 8]))
        return Scheme(f"si{bits}", group, scale, scale_rule=draw(st.sampled_from(SYMMETRIC)))
    bits = draw(st.sampled_from([1, 2, 3, 4, 8]))
    mode, zero = draw(st.sampled_from(ZERO_POINTS))
    signed = mode != "quantized" and draw(st.booleans())
    zero = f"ui{bits}" if zero == "ui" else zero
    return Scheme(f"{'s' if signed else 'u'}i{bits}", group, scale, mode, zero, "rtn", "minmax")


def random_weight(seed: int, offset: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(4, 64, generator=generator) + offset) * 0.02


def steps(quantized: BlockScaled) -> torch.Tensor:
    """The scale of each element, [N, K]."""
    times = quantized.codes.shape[1] // quantized.scale.shape[1]
    return quantized.scale.double().repeat_interleave(times, 1)


@settings(max_examples=60, deadline=None)
@given(scheme=schemes(), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1.0, -5.0]))
def test_no_other_code_is_nearer(scheme: Scheme, seed: int, offset: float) -> None:
    """For the scale and zero point it chose, against every code there is, in float64."""
    weight = random_weight(seed, offset)
    quantized = rtn(weight, scheme.type(), scheme.scale_rule)
    format = quantized.type.format
    chosen = (quantized.dequantize(torch.float64) - weight.double()).abs()
    nearest = torch.full_like(chosen, torch.inf)
    for code in range(int(format.minimum), int(format.maximum) + 1):
        quantized.codes.fill_(code)
        error = (quantized.dequantize(torch.float64) - weight.double()).abs()
        nearest = torch.minimum(nearest, error)
    step = steps(quantized)
    assert ((chosen - nearest) <= 1e-4 * step).all(), "beyond the rounding of w/s in float32"


@settings(max_examples=60, deadline=None)
@given(scheme=schemes(), seed=st.integers(0, 1000), offset=st.sampled_from([0.0, 1.0, -5.0]))
def test_every_element_is_within_half_a_step(scheme: Scheme, seed: int, offset: float) -> None:
    """So the range of codes covers the block; formats of scale and zero point may round it."""
    weight = random_weight(seed, offset)
    quantized = rtn(weight, scheme.type(), scheme.scale_rule)
    error = (quantized.dequantize(torch.float64) - weight.double()).abs()
    step = steps(quantized)
    bits = quantized.type.format.bits
    slack = 1e-4 * step + (step * 2**bits) * EPSILON[scheme.scale]
    if scheme.zero_mode == "quantized":
        slack = slack + step / 2  # the zero point is rounded to a code
    elif scheme.zero is not None:
        slack = slack + (step * 2**bits + weight.abs().max()) * EPSILON[scheme.zero]
    assert (error <= step / 2 + slack).all()


@st.composite
def grids(draw: st.DrawFn) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes [4, 64] in which every block of 32 has codes 0 and 15; f16 scale, f16 offset [4, 2]."""
    seed = draw(st.integers(0, 2**32 - 1))
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 16, (4, 2, 32), generator=generator)
    ends = torch.rand(4, 2, 32, generator=generator).argsort(-1)[..., :2]
    codes.scatter_(-1, ends, torch.tensor([0, 15]).expand(4, 2, 2))
    scale = torch.exp2(torch.rand(4, 2, generator=generator) * 8 - 9).half()
    offset = (torch.randn(4, 2, generator=generator) * draw(st.sampled_from([0.01, 0.1, 4]))).half()
    return codes.flatten(1).to(torch.uint8), scale, offset


def spread(part: torch.Tensor) -> torch.Tensor:
    return part.float().repeat_interleave(32, 1)


@settings(max_examples=40, deadline=None)
@given(grid=grids())
def test_weights_on_the_rescale_grid_are_recovered(grid: tuple[torch.Tensor, ...]) -> None:
    """GGUF's Q4_1, w = d·q + m with d and m in f16: codes, scale and zero point come back."""
    codes, scale, offset = grid
    weight = codes.float() * spread(scale) + spread(offset)
    exact = codes.double() * spread(scale).double() + spread(offset).double()
    assume(torch.equal(weight.double(), exact))
    quantized = rtn(weight, preset("int4_g32").type(), "minmax")
    assert torch.equal(quantized.scale, scale)
    assert quantized.zero is not None and torch.equal(quantized.zero, offset)
    assert torch.equal(quantized.codes, codes)
    assert torch.equal(quantized.dequantize(), weight)


@pytest.mark.parametrize("mode, zero", [("original", "f16"), ("quantized", "ui4")])
@settings(max_examples=20, deadline=None)
@given(grid=grids(), seed=st.integers(0, 1000))
def test_weights_on_the_grid_of_integer_zero_points_are_recovered(
    mode: str, zero: str, grid: tuple[torch.Tensor, ...], seed: int
) -> None:
    """AWQ and GPTQ, w = (q − z)·s with z an integer code."""
    codes, scale, _ = grid
    z = torch.randint(0, 16, (4, 2), generator=torch.Generator().manual_seed(seed))
    weight = (codes.float() - spread(z)) * spread(scale)
    scheme = Scheme("ui4", 32, "f16", mode, zero, "rtn", "minmax")
    quantized = rtn(weight, scheme.type(), "minmax")
    assert torch.equal(quantized.scale, scale)
    assert quantized.zero is not None and torch.equal(quantized.zero.long(), z)
    assert torch.equal(quantized.codes, codes)


@settings(max_examples=20, deadline=None)
@given(grid=grids())
def test_weights_on_the_symmetric_grid_are_recovered(grid: tuple[torch.Tensor, ...]) -> None:
    codes, scale, _ = grid
    signed = codes.to(torch.int8) - 8
    quantized = rtn(signed.float() * spread(scale), preset("int4_g32_sym").type(), "no_clip")
    assert torch.equal(quantized.scale, scale)
    assert quantized.zero is None and torch.equal(quantized.codes, signed)


# Scale rules


def test_scale_rules_in_numbers() -> None:
    """A block from −3 to 6, at 4 bits."""
    low, high = torch.tensor([-3.0]), torch.tensor([6.0])
    scales = {name: rule(low, high, 4).item() for name, rule in SCALE_RULES.items()}
    assert scales == pytest.approx(
        {"minmax": 9 / 15, "half": 6 / 7.5, "restricted": 6 / 7, "no_clip": 6 / 7}
    )
    # The negative end has one code more: no_clip uses it.
    assert SCALE_RULES["no_clip"](torch.tensor([-6.0]), torch.tensor([3.0]), 4).item() == 6 / 8


@pytest.mark.parametrize("rule, clips", [("half", True), ("restricted", False), ("no_clip", False)])
def test_which_symmetric_rules_clip(rule: str, clips: bool) -> None:
    weight = torch.zeros(1, 32)
    weight[0, 0] = 6.0
    quantized = rtn(weight, Scheme("si4", 32, "f32", scale_rule=rule).type(), rule)
    assert quantized.codes[0, 0] == 7
    assert (quantized.dequantize()[0, 0].item() < 5.99) is clips


TORCHAO = [
    ("SYMMETRIC", Scheme("si4", 32, "f32", scale_rule="half")),
    ("SYMMETRIC_NO_CLIPPING_ERR", Scheme("si4", 32, "f32", scale_rule="no_clip")),
    ("ASYMMETRIC", Scheme("ui4", 32, "f32", "quantized", "ui4", "rtn", "minmax")),
    ("ASYMMETRIC", Scheme("ui8", 32, "f32", "quantized", "ui8", "rtn", "minmax")),
]


def affine(weight: torch.Tensor, mapping: str, low: int, high: int) -> tuple[torch.Tensor, ...]:
    """Scale, zero point and codes as torchao's affine primitives define them, in blocks of 32."""
    blocks = weight.unflatten(1, (-1, 32))
    least, most = blocks.amin(-1).clamp(max=0), blocks.amax(-1).clamp(min=0)
    zero = torch.zeros_like(least)
    if mapping == "SYMMETRIC":
        scale = torch.maximum(-least, most) / ((high - low) / 2)
    elif mapping == "SYMMETRIC_NO_CLIPPING_ERR":
        scale = torch.maximum(least / low, most / high)
    else:
        scale = (most - least) / (high - low)
        zero = (low - torch.round(least / scale)).clamp(low, high)
    codes = torch.round(blocks / scale[..., None]) + zero[..., None]
    return scale, zero, codes.clamp(low, high).flatten(1)


@pytest.mark.parametrize("mapping, scheme", TORCHAO)
def test_scales_and_codes_are_those_of_affine_quantization(mapping: str, scheme: Scheme) -> None:
    weight = random_weight(0, 0.3)
    quantized = rtn(weight, scheme.type(), scheme.scale_rule)
    format = quantized.type.format
    scale, zero, codes = affine(weight, mapping, int(format.minimum), int(format.maximum))
    torch.testing.assert_close(quantized.scale, scale, rtol=1e-6, atol=0)
    assert torch.equal(quantized.codes.float(), codes)
    if quantized.zero is not None:
        assert torch.equal(quantized.zero.float(), zero)


@pytest.mark.parametrize("mapping, scheme", TORCHAO)
def test_scales_and_codes_are_torchaos(mapping: str, scheme: Scheme) -> None:
    weight = random_weight(0, 0.3)
    quantized = rtn(weight, scheme.type(), scheme.scale_rule)
    format = quantized.type.format
    limits = (int(format.minimum), int(format.maximum))
    block: Any = (1, 32)  # torchao's annotation is of one dimension
    scale, zero = quant_primitives.choose_qparams_affine(
        weight, quant_primitives.MappingType[mapping], block, torch.int32, *limits
    )
    codes = quant_primitives.quantize_affine(weight, block, scale, zero, torch.int32, *limits)
    torch.testing.assert_close(quantized.scale, scale.view(4, 2), rtol=1e-6, atol=0)
    assert torch.equal(quantized.codes.int(), codes)
    if quantized.zero is not None:
        assert torch.equal(quantized.zero.int(), zero.view(4, 2))


# Blocks without a range, and the narrowest codes

MODES = [
    Scheme("si4", 32),
    Scheme("ui4", 32, "f16", "rescale", "f16", "rtn", "minmax"),
    Scheme("ui4", 32, "f16", "original", "f16", "rtn", "minmax"),
    Scheme("ui4", 32, "f16", "quantized", "ui4", "rtn", "minmax"),
]


@pytest.mark.parametrize("scheme", MODES, ids=lambda s: s.zero_mode)
@pytest.mark.parametrize("value", [0.0, 0.3, -0.3, 1000.0])
def test_a_constant_block_keeps_its_value(scheme: Scheme, value: float) -> None:
    """To the precision of an f16 scale or zero point; zero exactly."""
    quantized = rtn(torch.full((2, 64), value), scheme.type(), scheme.scale_rule)
    torch.testing.assert_close(
        quantized.dequantize(), torch.full((2, 64), value), rtol=2.0**-10, atol=0
    )


# An f16 that is not zero is 2⁻²⁴ at least, and has 2 digits at 2⁻²³: these scales lie below.
SMALL = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-20)


@pytest.mark.parametrize("size", SMALL)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("scheme", MODES, ids=lambda s: s.zero_mode)
def test_a_small_block_has_a_scale_that_clips_nothing(
    scheme: Scheme, bits: int, size: float
) -> None:
    """Its scale is rounded up, to the least at least: no error is more than half a step."""
    sign, zero = scheme.element[:2], f"ui{bits}" if scheme.zero_mode == "quantized" else scheme.zero
    scheme = replace(scheme, element=f"{sign}{bits}", zero=zero)
    weight = random_weight(0, 0)
    weight[1, 32:] *= size / weight[1, 32:].abs().max()
    quantized = rtn(weight, scheme.type(), scheme.scale_rule)
    small = quantized.index_select(0, torch.tensor([1]))
    error = (small.dequantize(torch.float64) - weight[1].double()).abs()[0, 32:]
    step = float(small.scale[0, 1])
    rule = float(SCALE_RULES[scheme.scale_rule](*weight[1, 32:].aminmax(), bits))
    assert 0 < step <= rule * (1 + 2.0**-bits) + 2.0**-24
    # Zero points are rounded too, those of floats to a multiple of 2⁻²⁴, integers to a step.
    slack = {"none": 0.0, "original": 0.6 * step, "quantized": step}
    assert (error <= 0.51 * step + slack.get(scheme.zero_mode, 2.0**-24)).all()
    others = rtn(weight[[0, 2]], scheme.type(), scheme.scale_rule)
    assert torch.equal(quantized.codes[[0, 2]], others.codes)
    assert underflow(weight, quantized) == ""


@pytest.mark.parametrize("quantizer", ["rtn", "hqq", "scale_search"])
@pytest.mark.parametrize("scheme", MODES[:2], ids=lambda s: s.zero_mode)
def test_a_weight_that_is_all_small_is_told(scheme: Scheme, quantizer: str) -> None:
    if quantizer == "hqq" and not scheme.zero:
        pytest.skip("hqq has zero points")
    weight = random_weight(0, 0) * 1e-8
    found = QUANTIZERS[quantizer](weight, scheme.type(), scheme.scale_rule)
    words = r"is at most .*e-10, near the least scale in f16: to keep it .* scale=f32"
    assert re.search(words + " zero=f32" * bool(scheme.zero), underflow(weight, found))
    assert (found.dequantize(torch.float64) - weight.double()).abs().max() <= 2.0**-24
    wide = replace(scheme, scale="f32", zero=scheme.zero and "f32")
    found = QUANTIZERS[quantizer](weight, wide.type(), scheme.scale_rule)
    assert underflow(weight, found) == ""
    assert ((found.dequantize() - weight).abs() <= 1.2 * steps(found).abs()).all()


def test_weights_that_are_exact_are_not_small() -> None:
    for value in (0.0, 2.0**-24, 0.02):
        weight = torch.full((2, 32), value)
        assert underflow(weight, rtn(weight, MODES[1].type(), "minmax")) == ""
    weight = torch.full((2, 32), 3e-8)
    assert "near the least" in underflow(weight, rtn(weight, MODES[1].type(), "minmax"))
    assert underflow(torch.zeros(2, 32), rtn(torch.zeros(2, 32), MODES[0].type(), "no_clip")) == ""


@pytest.mark.parametrize("scheme", MODES, ids=lambda s: s.zero_mode)
def test_scales_just_above_the_underflow_hold_their_blocks(scheme: Scheme) -> None:
    """2⁻²⁰ is a subnormal f16, with 4 bits still."""
    weight = random_weight(0, 0)
    weight *= 2.0**-20 * 15 / (weight.view(-1, 32).amax(1) - weight.view(-1, 32).amin(1)).min()
    quantized = rtn(weight, scheme.type(), scheme.scale_rule)
    error = (quantized.dequantize(torch.float64) - weight.double()).abs()
    assert (error <= 1.2 * steps(quantized)).all()


def test_a_weight_is_quantized_in_slices_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Temporaries are wider than the weight; blocks are never cut."""
    weight = torch.cat([random_weight(seed, seed) for seed in range(3)])
    scheme = Scheme("ui4", 16, "f16", "quantized", "ui4", "rtn", "minmax")
    wholes = [rtn(weight, t, "minmax") for t in (scheme.type(), pairs_of_rows())]
    sizes: list[int] = []

    def recorded(rows: torch.Tensor, *how: Any) -> Any:
        sizes.append(rows.shape[0])
        return rtn_rows(rows, *how)

    monkeypatch.setattr("gqc.formats.packing.SLICE", 64 * 3)
    monkeypatch.setattr(rtn_file, "rtn_rows", recorded)
    slices = [rtn(weight, t, "minmax") for t in (scheme.type(), pairs_of_rows())]
    assert sizes == [3] * 4 + [2] * 6
    for whole, cut in zip(wholes, slices, strict=True):
        assert torch.equal(whole.codes, cut.codes) and torch.equal(whole.scale, cut.scale)
        assert (whole.zero is None) is (cut.zero is None)
        assert whole.zero is None or torch.equal(whole.zero, cut.zero)  # pyright: ignore


def pairs_of_rows() -> Any:
    """Blocks of two rows."""
    from xdsl.dialects.builtin import IntegerType, Signedness, f32

    from gqc.dialects.gq import BlockScaledType

    return BlockScaledType([2, 16], f32, IntegerType(8, Signedness.SIGNED))


def test_one_bit_is_the_ends_of_the_range() -> None:
    weight = random_weight(0, 0.5)
    scheme = Scheme("ui1", 32, "f32", "rescale", "f32", "rtn", "minmax")
    values = rtn(weight, scheme.type(), "minmax").dequantize(torch.float64).view(-1, 32)
    blocks = weight.view(-1, 32)
    torch.testing.assert_close(values.amin(1).float(), blocks.amin(1))
    torch.testing.assert_close(values.amax(1).float(), blocks.amax(1))
    assert all(len(block.unique()) == 2 for block in values)


def test_blocks_of_several_rows_share_a_scale() -> None:
    weight = random_weight(0, 0)
    quantized = rtn(weight, pairs_of_rows(), "restricted")
    assert quantized.scale.shape == (2, 4)
    assert quantized.scale[1, 2] == weight[2:, 32:48].abs().max() / 127
    assert (quantized.dequantize() - weight).abs().max() <= quantized.scale.max() * 0.5001


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_any_float_is_quantized_in_float32(dtype: torch.dtype) -> None:
    weight = torch.nn.Parameter(random_weight(0, 0).to(dtype))
    ours, theirs = (rtn(w, MODES[1].type(), "minmax") for w in (weight, weight.detach().float()))
    assert torch.equal(ours.codes, theirs.codes) and torch.equal(ours.scale, theirs.scale)
    assert not ours.scale.requires_grad


# Weights that cannot be quantized


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_inf_and_nan_are_refused(bad: float) -> None:
    weight = random_weight(0, 0)
    weight[1, 3] = bad
    with pytest.raises(ValueError, match="the weight holds inf or NaN"):
        rtn(weight, MODES[0].type(), "no_clip")


@pytest.mark.parametrize(
    "scheme, weight",
    [
        (MODES[0], random_weight(0, 0) * 1e8),  # the scale
        (MODES[1], torch.full((1, 32), 1e5)),  # the zero point
    ],
)
def test_an_overflow_names_the_format_and_the_remedy(scheme: Scheme, weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"overflows f16: give the scheme (scale|zero)=bf16"):
        rtn(weight, scheme.type(), scheme.scale_rule)
    wide = Scheme(scheme.element, 32, "f32", scheme.zero_mode, scheme.zero and "f32")
    rtn(weight, wide.type(), scheme.scale_rule)


def test_negative_weights_have_no_unsigned_code_without_a_zero_point() -> None:
    from xdsl.dialects.builtin import IntegerType, Signedness, f16

    from gqc.dialects.gq import BlockScaledType

    type_ = BlockScaledType([1, 32], f16, IntegerType(4, Signedness.UNSIGNED))
    with pytest.raises(ValueError, match="ui4 without a zero point has no negative codes; use si4"):
        rtn(random_weight(0, 0), type_, "minmax")
    rtn(random_weight(0, 0).abs(), type_, "minmax")


def test_float_elements_are_refused() -> None:
    scheme = Scheme("f4E2M1FN", 32, scale="f8E8M0FNU")
    with pytest.raises(ValueError, match="round-to-nearest gives integers, not f4E2M1FN"):
        rtn(random_weight(0, 0), scheme.type(), "no_clip")


def test_tensor_scales_are_refused() -> None:
    scheme = Scheme("si4", 32, tensor_scale=True)
    with pytest.raises(ValueError, match="round-to-nearest gives no tensor scale"):
        rtn(random_weight(0, 0), scheme.type(), "no_clip")


def test_scales_that_are_powers_of_two_are_refused() -> None:
    scheme = Scheme("si4", 32, scale="f8E8M0FNU")
    with pytest.raises(ValueError, match="a scale of f8E8M0FNU, rounded to nearest, would clip"):
        rtn(random_weight(0, 0), scheme.type(), "no_clip")
