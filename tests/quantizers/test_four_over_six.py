"""Four Over Six: each block the better of the two that the paper has, never worse than amax."""

from __future__ import annotations

import pytest
import torch
from quantizers.inputs import heavy

from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS
from gqc.quantizers import four_over_six, microscaling
from gqc.schemes import parse_scheme

TYPE = parse_scheme("w4a16_nvfp4").type()


def by_the_paper(weight: torch.Tensor) -> torch.Tensor:
    """The weight that the paper's algorithm gives, in float64, with E4M3 as torch rounds it."""
    grid = torch.tensor(ELEMENTS["f4E2M1FN"].values, dtype=torch.float64).unique()
    blocks = weight.double().unflatten(1, (-1, 16))
    whole = blocks.abs().max() / (256 * 6)
    tried = []
    for greatest in (6, 4):
        scale = (blocks.abs().amax(-1, keepdim=True) / greatest / whole).float()
        step = scale.to(torch.float8_e4m3fn).double() * whole
        codes = (blocks.unsqueeze(-1) / step.unsqueeze(-1) - grid).abs().argmin(-1)
        tried.append(grid[codes] * step)
    six, four = ((t - blocks).square().sum(-1, keepdim=True) for t in tried)
    return torch.where(four < six, tried[1], tried[0]).flatten(1)


def test_it_is_the_papers_algorithm() -> None:
    weight = heavy(64, 256)
    found = four_over_six(weight, TYPE, "amax")
    torch.testing.assert_close(
        found.dequantize(torch.float64), by_the_paper(weight), rtol=1e-5, atol=1e-7
    )
    assert found.scale.float().max() in (256, 384)


def test_it_errs_less_than_amax() -> None:
    weight = torch.randn(128, 256, generator=torch.Generator().manual_seed(0))
    plain, found = (
        (quantizer(weight, TYPE, "amax").dequantize() - weight).square().mean()
        for quantizer in (microscaling, four_over_six)
    )
    assert found < 0.9 * plain


def test_a_block_of_four_values_has_its_greatest_at_4() -> None:
    weight = torch.zeros(2, 16)
    weight[0, :4], weight[1, :3] = torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.tensor([6.0, 4.0, 1.0])
    found = four_over_six(weight, TYPE, "amax", torch.tensor(1.0))
    assert torch.equal(found.scale.float(), torch.ones(2, 1))
    assert torch.equal(found.dequantize(), weight)


def test_other_formats_and_numbers_are_refused() -> None:
    with pytest.raises(GqcError, match="no quantizer 'four_over_six' for mxfp4"):
        parse_scheme("mxfp4+four_over_six")
    assert parse_scheme("nvfp4+four_over_six").quantizer == "four_over_six"
    with pytest.raises(ValueError, match="NVFP4"):
        four_over_six(heavy(2, 32), parse_scheme("w4a16_mxfp4").type(), "amax")
    with pytest.raises(ValueError, match="the weight holds inf or NaN"):
        four_over_six(torch.full((1, 16), torch.nan), TYPE, "amax")
