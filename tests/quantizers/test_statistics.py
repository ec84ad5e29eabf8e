"""Statistics: what one pass over inputs keeps, and what transforms make of it."""

from __future__ import annotations

import pytest
import torch
from quantizers.inputs import correlated, heavy, output_error, statistics_of

from gqc.formats.rotation import rotate
from gqc.quantizers import Statistics
from gqc.quantizers.statistics import SAMPLE


def assert_of(statistics: Statistics, x: torch.Tensor) -> None:
    """The sums are those of the rows of x, computed at once in float64."""
    x = x.double()
    torch.testing.assert_close(statistics.gram.double(), x.T @ x / len(x), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(statistics.power.double(), x.square().mean(0), rtol=1e-5, atol=0)
    assert statistics.rows == len(x)


def test_calls_add_up_to_one() -> None:
    x = correlated(3000, 32)
    statistics = statistics_of(x[:1], x[1:1000].reshape(27, 37, 32), x[:0], x[1000:])
    assert_of(statistics, x)
    torch.testing.assert_close(statistics.mean, x.abs().mean(0))
    assert torch.equal(statistics.greatest, x.abs().amax(0))


def test_the_sample_is_of_rows_from_everywhere() -> None:
    x = torch.arange(4000.0).unsqueeze(1)
    kept = statistics_of(*x.split(100)).sample.flatten()
    assert len(kept) == len(kept.unique()) == SAMPLE
    assert kept.mean() == pytest.approx(2000, abs=4 * 1155 / SAMPLE**0.5)
    assert torch.equal(kept, statistics_of(*x.split(100)).sample.flatten())
    assert sorted(statistics_of(x[:9]).sample.flatten().tolist()) == [*range(9)]


def test_transforms_are_those_of_the_inputs() -> None:
    x, factor, order = correlated(500, 32), torch.rand(32) + 0.5, torch.randperm(32)
    statistics = statistics_of(x)
    for transformed, inputs in (
        (statistics.scaled(factor), x * factor),
        (statistics.permuted(order), x[:, order]),
    ):
        assert_of(transformed, inputs)
        torch.testing.assert_close(transformed.mean, inputs.abs().mean(0))
        torch.testing.assert_close(transformed.greatest, inputs.abs().amax(0))
    assert torch.equal(statistics.permuted(order).sample, statistics.sample[:, order])
    rotated = statistics.rotated(16)
    assert_of(rotated, rotate(x, 16))
    torch.testing.assert_close(rotated.sample, rotate(statistics.sample, 16))
    assert rotated.mean.isnan().all() and rotated.greatest.isnan().all()


def test_the_output_error_is_that_of_the_outputs() -> None:
    x, weight = correlated(500, 32), heavy(8, 32)
    error = statistics_of(x).output_error(weight).sum()
    assert float(error) == pytest.approx(output_error(weight, 0 * weight, x), rel=1e-4)


def test_float16_inputs_do_not_overflow() -> None:
    x = torch.full((5000, 16), 3e4, dtype=torch.float16)
    assert torch.equal(statistics_of(*x.split(50)).greatest, torch.full((16,), 3e4))
    assert statistics_of(*x.split(50)).power.allclose(torch.tensor(9e8))


@pytest.mark.parametrize("bad", [torch.inf, torch.nan])
def test_inputs_that_are_no_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="its calibration inputs hold inf or NaN"):
        statistics_of(torch.tensor([[1.0, bad]]))
