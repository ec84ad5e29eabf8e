"""Weights with outliers and inputs with correlated channels of unlike power, for tests."""

from __future__ import annotations

import torch

from gqc.quantizers import Statistics


def heavy(rows: int, k: int, spread: float = 0.5) -> torch.Tensor:
    """Random weights of which some are far out."""
    generator = torch.Generator().manual_seed(rows + k)
    weight = torch.randn(rows, k, generator=generator)
    return weight * torch.randn(rows, k, generator=generator).mul(spread).exp()


def correlated(rows: int, k: int) -> torch.Tensor:
    """Inputs [rows, K] of a few directions and noise, some channels far larger than others."""
    generator = torch.Generator().manual_seed(rows + k)
    directions = torch.randn(k // 4, k, generator=generator)
    x = torch.randn(rows, k // 4, generator=generator) @ directions
    x = x / 4 + torch.randn(rows, k, generator=generator)
    return x * torch.randn(k, generator=generator).exp()


def statistics_of(*inputs: torch.Tensor) -> Statistics:
    """Statistics of inputs, each counted in a call of its own."""
    statistics = Statistics.of(inputs[0].shape[-1])
    generator = torch.Generator().manual_seed(0)
    for x in inputs:
        statistics.update(x, generator)
    return statistics


def output_error(weight: torch.Tensor, exact: torch.Tensor, x: torch.Tensor) -> float:
    """Mean square of what a layer's outputs are off by, from the outputs themselves, in float64."""
    return float((x.double() @ (weight.double() - exact.double()).T).square().sum(1).mean())
