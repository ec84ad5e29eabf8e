"""AWQ: channels of great inputs get finer steps, weights multiplied and inputs divided by a factor.

Lin et al., arXiv 2306.00978, section 3.2: factors mean|x|^α, here over mean|w|^(1−α) too as in the
authors' code, where |w| is taken relative to the greatest of its group; α is searched for the least
output error. Its clipping of weights is the scale search's (`gqc.quantizers.range_search`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gqc.quantizers.factors import best_factor, powers

if TYPE_CHECKING:
    import torch

    from gqc.quantizers.statistics import Statistics
    from gqc.schemes import Scheme


def awq(
    weights: Sequence[torch.Tensor], scheme: Scheme, statistics: Statistics
) -> torch.Tensor | None:
    """Factors [K], float32, of layers with these weights [N, K] that read one input.

    Weights are multiplied by them and the input divided. None if no factor is better than none.
    """
    size = relative_size(weights, scheme.group)
    return best_factor(powers(statistics.mean, size), weights, scheme, statistics)


def relative_size(weights: Sequence[torch.Tensor], group: int | None) -> torch.Tensor:
    """Mean over rows of |w| over the greatest |w| of its group, [K]."""
    import torch

    rows = torch.cat([weight.float().abs() for weight in weights])
    blocks = rows.unflatten(1, (-1, group or rows.shape[1]))
    greatest = blocks.amax(-1, keepdim=True).clamp(min=1e-30)
    return (blocks / greatest).flatten(1).mean(0)
