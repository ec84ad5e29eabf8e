"""Range search: integers whose blocks err less than under any range clipped about 0."""

from __future__ import annotations

import pytest
import torch
from quantizers.inputs import correlated, heavy, statistics_of

from gqc.formats.block_scaled import BlockScaled
from gqc.quantizers import rtn, scale_search
from gqc.schemes import Scheme, parse_scheme

INTEGER = Scheme("ui4", 32, zero_mode="quantized", zero="ui4", scale_rule="minmax")
ORIGINAL = Scheme("ui3", 64, "bf16", zero_mode="original", zero="bf16", scale_rule="minmax")
SCHEMES = (
    "int4_g128",
    "int4_g32_sym",
    "int3_g64",
    "int3_row_sym",
    "int2_g32",
    "int1_g16",
    "int8_g64",
    str(INTEGER),
    str(ORIGINAL),
)


def errors(q: BlockScaled, weight: torch.Tensor, counts: torch.Tensor | None = None):
    """Sums of squares by block, in float64, by what columns count."""
    square = (q.dequantize(torch.float64) - weight.double()).square()
    return q.blocked(square if counts is None else square * counts).sum((1, 3))


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_block_errs_more_than_rounded_to_nearest(text: str, dtype: torch.dtype) -> None:
    scheme, weight = parse_scheme(text), heavy(300, 512).to(dtype)  # more than a slice
    by_rtn = errors(rtn(weight, scheme.type(), scheme.scale_rule), weight)
    found = errors(scale_search(weight, scheme.type(), scheme.scale_rule), weight)
    assert (found <= by_rtn * (1 + 1e-5)).all()
    assert found.sum() < {"int8_g64": 0.99, str(INTEGER): 0.95}.get(text, 0.93) * by_rtn.sum()


@pytest.mark.parametrize("text", ["int4_g32", "int3_g64_sym", "int2_g32"])
def test_a_grid_of_clipped_ranges_is_no_better(text: str) -> None:
    """AWQ's own search: 50 ranges, each rounded to nearest after the weight is clipped to it."""
    scheme, weight = parse_scheme(text), heavy(64, 256)
    size = scheme.group or 0
    blocks, least = weight.unflatten(1, (-1, size)), torch.tensor(torch.inf)
    low, high = blocks.amin(-1, keepdim=True), blocks.amax(-1, keepdim=True)
    for part in torch.linspace(0.3, 1, 50):
        clipped = blocks.clamp(low * part, high * part).flatten(1)
        found = rtn(clipped, scheme.type(), scheme.scale_rule)
        least = least.minimum(errors(found, weight))
    found = errors(scale_search(weight, scheme.type(), scheme.scale_rule), weight)
    assert found.sum() < 0.97 * least.sum()


@pytest.mark.parametrize("text", ["int3_g64", "int4_g32_sym", "w4a16_nvfp4", "w4a16_mxfp4"])
def test_statistics_say_which_columns_count(text: str) -> None:
    scheme, weight, x = parse_scheme(text), heavy(64, 256), correlated(500, 256)
    statistics, power = statistics_of(x), x.double().square().mean(0)
    plain, weighted = (
        scale_search(weight, scheme.type(), scheme.scale_rule, statistics=each)
        for each in (None, statistics)
    )
    assert errors(weighted, weight, power).sum() < 0.95 * errors(plain, weight, power).sum()
    assert errors(weighted, weight).sum() > errors(plain, weight).sum()


@pytest.mark.parametrize("zero", [None, "f32"])
def test_scale_and_zero_point_are_those_of_least_squares(zero: str | None) -> None:
    """For its codes, no other scale or zero point serves better: against torch's lstsq."""
    if zero is None:
        scheme = Scheme("si3", 32, "f32")
    else:
        scheme = Scheme("ui3", 32, "f32", zero_mode="rescale", zero=zero, scale_rule="minmax")
    weight = heavy(8, 64)
    found = scale_search(weight, scheme.type(), scheme.scale_rule)
    got = errors(found, weight).flatten()
    codes = found.codes.double().reshape(-1, 32, 1)
    terms = codes if zero is None else torch.cat([codes, torch.ones_like(codes)], 2)
    blocks = weight.double().reshape(-1, 32, 1)
    line = terms @ torch.linalg.lstsq(terms, blocks).solution
    least = (line - blocks).square().sum((1, 2))
    assert (got <= least * 1.02).float().mean() > 0.8  # turns of codes and lines have settled


@pytest.mark.parametrize("text", ["int2_g32_sym", "int3_g64_sym", "int4_g32_sym"])
def test_a_weight_and_its_negative_err_alike(text: str) -> None:
    """The code that only one side of 0 has serves the greater side, by the sign of the scale."""
    scheme, weight = parse_scheme(text), heavy(64, 256)
    there, back = (scale_search(w, scheme.type(), scheme.scale_rule) for w in (weight, -weight))
    got, mirrored = errors(there, weight), errors(back, -weight)
    assert ((got - mirrored).abs() < 1e-5 * got).float().mean() > 0.9  # others tied on their way
    assert abs(got.sum() / mirrored.sum() - 1) < 0.003
    assert 0.3 < (there.scale < 0).float().mean() < 0.7
    blocks = weight.unflatten(1, (-1, scheme.group or 0))
    is_above = blocks.amax(-1) > 2 * -blocks.amin(-1)
    assert (there.scale[is_above] < 0).float().mean() > 0.8


def test_constant_blocks_and_zeros_stay_exact() -> None:
    for text, value in (("int4_g32", 0.0), ("int4_g32", 0.5), ("int4_g32_sym", 0.0)):
        scheme, weight = parse_scheme(text), torch.full((2, 64), value)
        found = scale_search(weight, scheme.type(), scheme.scale_rule)
        assert torch.equal(found.dequantize(), weight)


def test_what_rounding_to_nearest_refuses_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight holds inf or NaN"):
        scale_search(torch.full((1, 32), torch.nan), parse_scheme("int4_g32").type(), "minmax")
    with pytest.raises(ValueError, match="overflows f16"):
        scale_search(torch.full((1, 32), 1e6), parse_scheme("int4_g32_sym").type(), "no_clip")
