"""The multiple-choice knapsack: one choice of each row, of the least loss within a budget.

Solved exactly. A price λ of cost, from the convex hulls of the rows (Sinha and Zoltners 1979,
"The Multiple-Choice Knapsack Problem"), gives a choice within the budget, and of every partial
choice what it can come to at best. Dynamic programming over the rows (Nemhauser and Ullmann 1969)
keeps those that may still come to less, and that no other one is as cheap and as good as.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Choice:
    """What one row may be: its cost, an integer, and its loss."""

    cost: int
    loss: float


Rows = Sequence[Sequence[Choice]]


def solve(rows: Rows, budget: int) -> list[int]:
    """For each row the number of its choice: losses sum to the least that costs within the budget
    allow. Of equal sums the cheapest. Raises ValueError where even the cheapest exceed the budget.
    """
    if sum(min(choice.cost for choice in row) for row in rows) > budget:
        raise ValueError("the cheapest choices exceed the budget")
    picks, price = greedy(rows, budget)
    return improved(rows, budget, picks, price)


def hull(row: Sequence[Choice]) -> list[int]:
    """Choices on the lower convex hull of loss over cost, from the cheapest to the least loss."""
    points: list[int] = []
    for i in sorted(range(len(row)), key=lambda i: (row[i].cost, row[i].loss)):
        if points and row[i].loss >= row[points[-1]].loss:
            continue
        while len(points) > 1 and gain(row, points[-1], i) >= gain(row, points[-2], points[-1]):
            points.pop()
        points.append(i)
    return points


def gain(row: Sequence[Choice], a: int, b: int) -> float:
    """Loss that going from choice a to b saves, for each unit of cost."""
    return (row[a].loss - row[b].loss) / (row[b].cost - row[a].cost)


def greedy(rows: Rows, budget: int) -> tuple[list[int], float]:
    """A choice within the budget, and the price λ of cost under which it is nearly the best.

    Steps along the hulls are taken in the order of their gains; λ is the first that does not fit.
    """
    hulls = [hull(row) for row in rows]
    picks, price = [points[0] for points in hulls], 0.0
    left = budget - sum(row[i].cost for row, i in zip(rows, picks, strict=True))
    steps = [
        (-gain(rows[r], a, b), r, a, b)
        for r, points in enumerate(hulls)
        for a, b in pairwise(points)
    ]
    for negative, r, a, b in sorted(steps):
        cost = rows[r][b].cost - rows[r][a].cost
        if picks[r] == a and cost <= left:
            picks[r], left = b, left - cost
        else:
            price = price or -negative
    return picks, price


def improved(rows: Rows, budget: int, picks: Sequence[int], price: float) -> list[int]:
    """The best choice, from one that is known and a price λ of cost.

    A choice of loss L and cost C has the bound L + λ(C − budget), which is no more than L. It is a
    sum over the rows, so that one that is not yet whole has a bound too: the rest at its least.
    """
    known = sum(row[i].loss for row, i in zip(rows, picks, strict=True))
    least = [min(choice.loss + price * choice.cost for choice in row) for row in rows]
    rest = sum(least) - price * budget
    cheapest = sum(min(choice.cost for choice in row) for row in rows)
    costs, losses = np.zeros(1, np.int64), np.zeros(1)
    stages: list[tuple[NDArray, NDArray]] = []
    slack = 1e-12 * (abs(known) + price * budget)  # of sums in another order
    for row, below in zip(rows, least, strict=True):
        rest -= below
        cheapest -= min(choice.cost for choice in row)
        cost = (costs[:, None] + np.array([choice.cost for choice in row])).ravel()
        loss = (losses[:, None] + np.array([choice.loss for choice in row])).ravel()
        may_win = (loss + price * cost + rest <= known + slack) & (cost + cheapest <= budget)
        kept = undominated(cost, loss, np.flatnonzero(may_win))
        stages.append(np.divmod(kept, len(row)))
        costs, losses = cost[kept], loss[kept]
    return traced(stages)


def undominated(cost: NDArray, loss: NDArray, among: NDArray) -> NDArray:
    """Those with less loss than all that cost no more, from the cheapest on."""
    order = among[np.lexsort((loss[among], cost[among]))]
    best = np.minimum.accumulate(loss[order])
    first = np.ones(len(order), bool)
    first[1:] = best[1:] < best[:-1]
    return order[first]


def traced(stages: Sequence[tuple[NDArray, NDArray]]) -> list[int]:
    """The choices that led to the last state, of the least loss."""
    picks, state = [], -1
    for before, choice in reversed(stages):
        picks.append(int(choice[state]))
        state = int(before[state])
    return picks[::-1]
