"""The knapsack against every choice there is, and against a table over all budgets."""

from __future__ import annotations

import itertools
import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gqc.mixed_precision.knapsack import Choice, Rows, solve


def totals(rows: Rows, picks: tuple[int, ...] | list[int]) -> tuple[float, int]:
    """Loss and cost of a choice."""
    chosen = [row[i] for row, i in zip(rows, picks, strict=True)]
    return sum(c.loss for c in chosen), sum(c.cost for c in chosen)


def rows_of(losses: st.SearchStrategy[float]) -> st.SearchStrategy[list[list[Choice]]]:
    choice = st.builds(Choice, st.integers(0, 9), losses)
    return st.lists(st.lists(choice, min_size=1, max_size=4), min_size=1, max_size=5)


@given(rows_of(st.integers(0, 6).map(float)), st.integers(0, 20))
def test_least_loss_then_least_cost_of_all_choices(rows: list[list[Choice]], spare: int) -> None:
    budget = sum(min(choice.cost for choice in row) for row in rows) + spare
    all_picks = itertools.product(*(range(len(row)) for row in rows))
    within = [t for t in (totals(rows, picks) for picks in all_picks) if t[1] <= budget]
    assert totals(rows, solve(rows, budget)) == min(within)


@given(rows_of(st.floats(0, 1)), st.integers(0, 20))
def test_least_loss_of_all_choices_of_any_floats(rows: list[list[Choice]], spare: int) -> None:
    budget = sum(min(choice.cost for choice in row) for row in rows) + spare
    all_picks = itertools.product(*(range(len(row)) for row in rows))
    within = [t for t in (totals(rows, picks) for picks in all_picks) if t[1] <= budget]
    loss, cost = totals(rows, solve(rows, budget))
    assert cost <= budget
    assert loss == pytest.approx(min(within)[0], rel=1e-12, abs=1e-300)


def best_loss(rows: Rows, budget: int) -> float:
    """The least loss within a budget, by a table of the best for each cost up to it."""
    best = [0.0] * (budget + 1)
    for row in rows:
        best = [
            min((best[b - c.cost] + c.loss for c in row if c.cost <= b), default=math.inf)
            for b in range(budget + 1)
        ]
    return best[budget]


@pytest.mark.parametrize("budget", [170, 230, 300, 444, 900])
def test_many_rows(budget: int) -> None:
    """60 rows whose losses spread as layers' do, fourfold less for each bit."""
    draw = random.Random(budget)
    rows = []
    for _ in range(60):
        size, scale = draw.choice([1, 1, 3]), draw.lognormvariate(0, 1.5)
        losses = [scale * 4.0**-bits * draw.lognormvariate(0, 0.3) for bits in (2, 3, 4, 8)]
        rows.append([Choice(size * b, loss) for b, loss in zip((2, 3, 4, 8), losses, strict=True)])
    budget = max(budget, sum(row[0].cost for row in rows))
    loss, cost = totals(rows, solve(rows, budget))
    assert cost <= budget
    assert loss == pytest.approx(best_loss(rows, budget), rel=1e-12)


def test_a_budget_below_the_cheapest() -> None:
    with pytest.raises(ValueError, match="cheapest choices exceed the budget"):
        solve([[Choice(2, 1.0)], [Choice(3, 1.0), Choice(2, 2.0)]], 3)
