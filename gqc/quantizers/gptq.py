"""GPTQ: columns are rounded in turn, and those to come make up for the errors of those before.

Frantar et al., arXiv 2210.17323. Outputs err by tr(E·G·Eᵀ), E the weight's errors and G the Gram
matrix of the inputs. With U upper triangular, G⁻¹ = Uᵀ·U, the error e of column i is least felt if
each later column j gives up e·U[i, j] / U[i, i]. Columns of greatest input power come first
(act-order). Blocks keep their columns, and their scales are searched before, so that nothing is
permuted when the model runs; which columns share a block, `column_order` says before.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled
from gqc.formats.microscaling import encode
from gqc.quantizers.scale_search import search

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.quantizers.statistics import Statistics

    Round = Callable[[int, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
    """Codes and values [N] of a column [N], by its number."""

BLOCK = 128
"""Columns whose errors reach the later blocks together."""
DAMPING = (0.01, 0.1, 1.0)
"""What is added to the diagonal, of its mean; the next where no factor is found, for rounding."""


def gptq(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a weight [N, K] for the inputs of which `statistics` tell, in float32.

    Scales are the scale search's; where no input is other than 0, so are the codes. Raises
    ValueError as it does, without statistics or under those of other inputs, on blocks of several
    rows, and if no damping makes the Gram matrix one that can be factored.
    """
    import torch

    if statistics is None:
        raise ValueError("gptq needs statistics of the layer's inputs: give calibration=")
    if len(statistics.mean) != weight.shape[1]:
        raise ValueError(f"the statistics are of {len(statistics.mean)} features")
    if type_.block_of(weight.shape)[0] != 1:
        raise ValueError("gptq rounds columns: blocks must be of one row")
    if not statistics.power.any():
        return search(weight, type_, scale_rule, tensor_scale, None)
    order = statistics.power.argsort(descending=True, stable=True)
    upper = inverse_factor(statistics.gram[order][:, order])
    # What an error in one column still costs when all others make up for it: 1 / diag(G⁻¹).
    counts = torch.empty(len(order))
    counts[order] = 1 / upper.square().sum(0)
    start = search(weight, type_, scale_rule, tensor_scale, counts)
    columns = weight.detach().float().T[order]
    round_column = rounding(start)
    codes = compensate(columns, upper, lambda i, w: round_column(int(order[i]), w))
    start.codes[:, order] = codes.T.to(start.codes.dtype)
    return start


def inverse_factor(gram: torch.Tensor) -> torch.Tensor:
    """U [K, K], upper triangular, of which Uᵀ·U is the inverse of the damped Gram matrix.

    The Cholesky factor of the matrix in reversed order is, reversed, R, upper triangular with
    R·Rᵀ = G; so U = R⁻¹, and no inverse is factored. Raises ValueError.
    """
    import torch

    eye = torch.eye(len(gram))
    for damping in DAMPING:
        damped = gram + eye * (damping * gram.diagonal().mean())
        factor, failed = torch.linalg.cholesky_ex(damped.flip(0, 1))
        if not failed:
            return torch.linalg.solve_triangular(factor.flip(0, 1), eye, upper=True)
    raise ValueError(
        "the Gram matrix of the inputs has no Cholesky factor, however damped: give other "
        "calibration inputs"
    )


def rounding(start: BlockScaled) -> Round:
    """How columns are rounded under the scales and zero points of a quantized weight."""
    import torch

    element, mode = start.type.format, start.type.mode
    size = start.type.block_of(start.codes.shape)[1]
    scale = start.scale.float().T.contiguous()  # [K/B, N]
    if start.tensor_scale is not None:
        scale = scale * start.tensor_scale
    zero = None if start.zero is None else start.zero.float().T.contiguous()

    def integers(i: int, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s, z = scale[i // size], None if zero is None else zero[i // size]
        codes = mode.code(w, s, z).round_().clamp_(element.minimum, element.maximum)
        return codes, mode.dequantize(codes, s, z)

    def floats(i: int, w: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        s = scale[i // size]
        codes = encode(w / s, element)
        return codes, table[codes.int()] * s

    if element.is_integer:
        return integers
    table = torch.tensor(element.values)
    return floats


def compensate(columns: torch.Tensor, upper: torch.Tensor, round_column: Round) -> torch.Tensor:
    """Codes [K, N] of columns [K, N], which are overwritten, rounded in their order."""
    import torch

    codes = torch.empty_like(columns)
    for first in range(0, len(columns), BLOCK):
        block = columns[first : first + BLOCK]
        inner = upper[first : first + BLOCK, first : first + BLOCK]
        errors = torch.empty_like(block)  # over the diagonal of U
        for i, column in enumerate(block):
            given = torch.addmv(column, errors[:i].T, inner[:i, i], alpha=-1)
            codes[first + i], values = round_column(first + i, given)
            errors[i] = (given - values) / inner[i, i]
        rest = slice(first + BLOCK, None)
        columns[rest].addmm_(upper[first : first + BLOCK, rest].T, errors, alpha=-1)
    return codes
