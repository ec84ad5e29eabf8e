"""Distances of outputs against their definitions in float64."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.modeling_outputs import SequenceClassifierOutput

from gqc.errors import GqcError
from gqc.mixed_precision.output_change import Reference

NO_KEYWORDS = ((), {})


def logits(noise: float) -> torch.Tensor:
    """[2, 3, 1000]: those of one draw, and some noise of another."""
    generator = torch.Generator().manual_seed(0)
    exact, other = (4 * torch.randn(2, 3, 1000, generator=generator) for _ in range(2))
    return exact + noise * other


def kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    p, q = (y.double().log_softmax(-1) for y in (p, q))
    return (p.exp() * (p - q)).sum(-1)


@pytest.mark.parametrize("noise", [1.0, 0.1, 1e-3])
def test_logits_by_their_divergence(noise: float) -> None:
    exact, found = (SimpleNamespace(logits=logits(each)) for each in (0.0, noise))
    reference = Reference(exact, NO_KEYWORDS)
    assert reference.size == 6
    truth = kl(exact.logits, found.logits).sum().item()
    assert reference.change(found) == pytest.approx(truth, rel=2e-3)
    assert reference.change(exact) == 0


def test_padding_does_not_count() -> None:
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    exact, found = (SimpleNamespace(logits=logits(each)) for each in (0.0, 0.5))
    reference = Reference(exact, ((), {"attention_mask": mask}))
    assert reference.size == 3
    truth = (kl(exact.logits, found.logits) * mask).sum().item()
    assert reference.change(found) == pytest.approx(truth, rel=1e-5)


def test_masked_classes() -> None:
    """Models forbid tokens by logits of minus infinity."""
    exact, found = (SimpleNamespace(logits=logits(each)) for each in (0.0, 0.5))
    for output in (exact, found):
        output.logits[..., 500:] = -torch.inf
    truth = kl(exact.logits[..., :500], found.logits[..., :500]).sum().item()
    assert Reference(exact, NO_KEYWORDS).change(found) == pytest.approx(truth, rel=1e-5)


def test_a_regression_is_no_prediction() -> None:
    """Logits of one class, whose distribution is always the same."""
    exact, found = (SequenceClassifierOutput(logits=torch.tensor([[y]])) for y in (2.0, 3.0))
    reference = Reference(exact, NO_KEYWORDS)
    assert (reference.change(found), reference.size) == (1.0, 4.0)


def test_other_outputs_by_their_squares() -> None:
    exact = {"y": torch.tensor([[3.0, 4.0]]), "index": torch.tensor([7])}
    found = {"y": torch.tensor([[3.0, 6.0]]), "index": torch.tensor([9])}
    reference = Reference(exact, NO_KEYWORDS)
    assert (reference.change(found), reference.size) == (4.0, 25.0)


def test_nothing_to_compare() -> None:
    with pytest.raises(GqcError, match="a SimpleNamespace, has no floating-point tensors"):
        Reference(SimpleNamespace(y=torch.ones(1)), NO_KEYWORDS)
