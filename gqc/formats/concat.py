"""Weights put together along their rows: what `gq.concat` does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def concat(weights: Sequence[Any], panel: int | None = None) -> Any:
    """The rows [N, …] of all weights, in turn `panel` rows of each, or all rows of each.

    They are tensors, or `BlockScaled` of one type in blocks of one row without a tensor scale. With
    a panel all have the same number of rows, a multiple of it.
    """
    import torch

    first = weights[0]
    if isinstance(first, torch.Tensor):
        return rows_of(weights, panel)
    parts = {}
    for name in ("codes", "scale", "zero"):
        each = [getattr(weight, name) for weight in weights]
        parts[name] = None if each[0] is None else rows_of(each, panel)
    return replace(first, **parts)


def rows_of(tensors: Sequence[torch.Tensor], panel: int | None) -> torch.Tensor:
    """Rows of tensors together. Scales of 8 bits, which torch does not concatenate, are bytes."""
    import torch

    dtype = tensors[0].dtype
    if dtype.itemsize == 1:
        tensors = [tensor.view(torch.uint8) for tensor in tensors]
    if panel is not None:
        stacked = torch.stack([tensor.unflatten(0, (-1, panel)) for tensor in tensors], 1)
        return stacked.flatten(0, 2).view(dtype)
    return torch.cat([*tensors]).view(dtype)
