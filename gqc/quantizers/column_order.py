"""Column order: columns of like size share a block, so that one scale fits all of them.

Act-order puts columns into blocks by the power of their inputs; their sizes are what a scale has to
fit. Where a block has but a few large columns, codes at the ends of its range may fit these, and
the order that there is be the better one: both are tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gqc.quantizers.factors import output_error

if TYPE_CHECKING:
    import torch

    from gqc.quantizers.statistics import Statistics
    from gqc.schemes import Scheme


def column_order(
    weights: Sequence[torch.Tensor], scheme: Scheme, statistics: Statistics
) -> torch.Tensor | None:
    """An order of the columns, int64 [K], of weights [N, K] that read one input: largest first.

    Sizes are sums of squares. None if outputs err no less than in the order that there is.
    """
    if not statistics.power.any():
        return None
    size = sum(weight.float().square().sum(0) for weight in weights)
    assert not isinstance(size, int)
    order = size.argsort(descending=True, stable=True)
    moved = [weight[:, order] for weight in weights]
    least = output_error(weights, scheme, statistics)
    return order if output_error(moved, scheme, statistics.permuted(order)) < least else None
