"""SmoothQuant: outliers of activations move into the weights, factor by factor of a channel.

Xiao et al., arXiv 2211.10438, equation 4: max|x|^α / max|w|^(1−α). The paper has one α for a model,
0.5 mostly; here each input's is searched for the least output error, inputs quantized too. Where no
layer before takes the factors, each layer has its own, which multiply its input as the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gqc.quantizers.factors import best_factor, powers

if TYPE_CHECKING:
    import torch

    from gqc.quantizers.statistics import Statistics
    from gqc.schemes import Scheme


def smoothquant(
    weights: Sequence[torch.Tensor], scheme: Scheme, statistics: Statistics
) -> torch.Tensor | None:
    """Factors [K], float32, of layers with these weights [N, K] that read one input.

    Weights are multiplied by them and the input divided. None if no factor is better than none.
    """
    import torch

    greatest = torch.cat([weight.float() for weight in weights]).abs().amax(0)
    return best_factor(powers(statistics.greatest, greatest), weights, scheme, statistics)
