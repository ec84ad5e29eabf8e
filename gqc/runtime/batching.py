"""Rules of `torch.func.vmap` for the operators: what each computes of every example of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gqc.runtime.gradients import BACKWARD
from gqc.runtime.ops import LIBRARY


def example(value: Any, dims: Any, i: int) -> Any:
    """One example of an argument, a tensor or a list of them, given the dimension of the batch."""
    if isinstance(value, Tensor):
        return value if dims is None else value.select(dims, i)
    if isinstance(value, list | tuple):
        each = dims if isinstance(dims, list | tuple) else [dims] * len(value)
        return [example(v, d, i) for v, d in zip(value, each, strict=True)]
    return value


def one_by_one(op: Any, info: Any, in_dims: Any, args: Any) -> tuple[Any, Any]:
    """An operator on each example, its results stacked along a first dimension."""
    found = [
        op(*(example(a, d, i) for a, d in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    leaves = [pytree.tree_flatten(each) for each in found]
    stacked = [torch.stack(parts) for parts in zip(*(each for each, _ in leaves), strict=True)]
    results = pytree.tree_unflatten(stacked, leaves[0][1])
    return results, pytree.tree_map(lambda _: 0, results)


def rule_of(op: Any) -> Any:
    """The rule of an operator: a kernel's sums may depend on how many rows it is given, and what an
    example gives does not depend on the others of its batch."""
    return lambda info, in_dims, *args: one_by_one(op, info, in_dims, args)


def register() -> None:
    """Give every operator its rule."""
    for name in (*LIBRARY, *BACKWARD):
        op = getattr(torch.ops.gqc, name).default
        torch.library.register_vmap(f"gqc::{name}", rule_of(op))


register()
