"""Scale search: no scale that a block might have is better than the one it gets."""

from __future__ import annotations

import pytest
import torch

import gqc
from gqc.dialects.torch_types import DTYPES
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.quantizers import microscaling, scale_search
from gqc.quantizers.scale_search import GREATEST, LEAST
from gqc.schemes import parse_scheme

SCHEMES = (
    "w4a16_mxfp4",
    "w6a16_mxfp6",
    "w6a16_mxfp6_e3m2",
    "w8a16_mxfp8",
    "w8a16_mxint8",
    "w4a16_nvfp4",
)


def heavy(rows: int, k: int) -> torch.Tensor:
    """Random weights of which some are far out."""
    generator = torch.Generator().manual_seed(rows + k)
    weight = torch.randn(rows, k, generator=generator)
    return weight * torch.randn(rows, k, generator=generator).exp()


def errors(quantized: BlockScaled, weight: torch.Tensor) -> torch.Tensor:
    """Sums of squares by block, in float64."""
    blocks = quantized.scale.shape[-1]
    difference = quantized.dequantize(torch.float64) - weight.double()
    return difference.square().unflatten(-1, (blocks, -1)).sum(-1)


def least_errors(weight: torch.Tensor, start: BlockScaled) -> torch.Tensor:
    """The least error of each block under any scale of the format, by trying every code nearest."""
    values = torch.tensor(start.type.format.values, dtype=torch.float64)
    values = values[values.isfinite()].unique()
    values = values[values >= -values.max()]  # -128 is unused
    name, whole = str(start.type.scale), start.tensor_scale
    blocks = weight.double().unflatten(-1, (start.scale.shape[-1], -1))
    least = torch.full(blocks.shape[:-1], torch.inf, dtype=torch.float64)
    steps = torch.arange(LEAST[name], GREATEST[name] + 1, dtype=torch.uint8)
    for step in steps.view(DTYPES[start.type.scale]).float():
        step = (step if whole is None else step * whole).double()
        grid = values * step
        right = torch.searchsorted(grid, blocks.contiguous()).clamp(1, len(grid) - 1)
        low, high = (blocks - grid[right - 1]).abs(), (grid[right] - blocks).abs()
        least = least.minimum(torch.minimum(low, high).square().sum(-1))
    return least


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("data", [torch.randn, None], ids=["gaussian", "heavy"])
def test_no_scale_of_the_format_is_better(text: str, data: object) -> None:
    scheme = parse_scheme(f"{text}+scale_search")
    torch.manual_seed(0)
    weight = heavy(24, 256) if data is None else torch.randn(24, 256)
    found = scale_search(weight, scheme.type(), scheme.scale_rule)
    error, least = errors(found, weight), least_errors(weight, found)
    assert (error <= least * (1 + 1e-5)).all()


LEFT = {"f4E2M1FN": 0.95, "nf4": 0.98}
"""Parts of the errors that are left, at most."""


@pytest.mark.parametrize("text", [*SCHEMES, "w4a16_nf4", "w8a16_fp8_g128"])
def test_it_errs_no_more_than_the_rule_and_less_in_4_bits(text: str) -> None:
    scheme, weight = parse_scheme(text), heavy(64, 256)
    by_rule = errors(microscaling(weight, scheme.type(), scheme.scale_rule), weight)
    searched = errors(scale_search(weight, scheme.type(), scheme.scale_rule), weight)
    assert (searched <= by_rule * (1 + 1e-5)).all()
    if scheme.element in LEFT:
        assert searched.sum() < LEFT[scheme.element] * by_rule.sum()


def test_blocks_that_fit_keep_the_scale_of_the_rule() -> None:
    scheme = parse_scheme("w4a16_mxfp4")
    weight = torch.zeros(2, 64)
    weight[1, :8] = torch.tensor([0.5, 1, 1.5, 2, 3, 4, 6, -6]) * 2**-7
    given = microscaling(weight, scheme.type(), "floor")
    found = scale_search(weight, scheme.type(), "floor")
    assert torch.equal(found.scale.view(torch.uint8), given.scale.view(torch.uint8))
    assert torch.equal(found.codes, given.codes)


@pytest.mark.parametrize("scheme", ["w4a16_mxfp4", "w4a16_nvfp4"])
def test_a_compiled_layer_errs_less(scheme: str) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(256, 64), torch.randn(32, 256)
    with torch.no_grad():
        plain, searched = (
            gqc.compile(layer, (x,), scheme=text)(x) - layer(x)
            for text in (scheme, f"{scheme}+scale_search")
        )
    assert searched.square().mean() < 0.95 * plain.square().mean()


def test_a_preset_takes_a_quantizer_that_fits() -> None:
    scheme = parse_scheme("mxfp4_even+scale_search")
    assert (scheme.quantizer, scheme.scale_rule) == ("scale_search", "even")
    assert scheme.activation is not None and scheme.activation.quantizer == "microscaling"
    assert parse_scheme(str(scheme)) == scheme
    for text, fitting in (
        ("int4_g64+microscaling", "rtn, hqq"),
        ("nvfp4+hqq", "microscaling, scale_search"),
    ):
        with pytest.raises(GqcError, match=f"no quantizer .* for .*: choose one of {fitting}"):
            parse_scheme(text)


def test_nan_is_refused() -> None:
    with pytest.raises(ValueError, match="the weight holds inf or NaN"):
        scale_search(torch.full((1, 32), torch.nan), parse_scheme("mxfp4").type(), "floor")
