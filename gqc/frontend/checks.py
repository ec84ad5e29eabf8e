"""Checks of what a caller passes, against what the model was captured for."""

from __future__ import annotations

from itertools import chain, count
from typing import Any

import torch
from xdsl.dialects.builtin import ArrayAttr, StringAttr
from xdsl.dialects.func import FuncOp
from xdsl.ir import BlockArgument

from gqc.dialects.gq import element_type, tensor_shape
from gqc.dialects.torch_types import DTYPES
from gqc.errors import GqcError

Dims = list[int | str]
"""A size or a name for each dimension of a tensor."""


def check_tensors(
    tensors: list[torch.Tensor], expected: list[tuple[str, torch.dtype, Dims]]
) -> None:
    """Raise GqcError unless each tensor is of the dtype and shape that is expected under its name.

    A name of a dimension stands for one size in all tensors.
    """
    sizes: dict[str, int] = {}
    for tensor, (name, dtype, dims) in zip(tensors, expected, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise GqcError(f"{name} is a {type(tensor).__name__}; the model takes a tensor")
        if tensor.dtype != dtype or tensor.ndim != len(dims):
            raise GqcError(
                f"{name} is {tensor.dtype} of {tensor.ndim} dimensions; "
                f"the model was captured for {dtype} {dims}"
            )
        for d, (size, dim) in enumerate(zip(tensor.shape, dims, strict=True)):
            wanted = sizes.setdefault(dim, size) if isinstance(dim, str) else dim
            if size != wanted:
                raise GqcError(
                    f"{name} has size {size} in dimension {d} ({dim}); the model takes {wanted}, "
                    "and others if it is captured again with dynamic_shapes"
                )


def check_constants(values: list[Any], expected: list[Any]) -> None:
    """Raise GqcError unless each input is the constant that the model was captured with."""
    for value, constant in zip(values, expected, strict=True):
        if value != constant:
            raise GqcError(f"the model was captured with the constant {constant!r}, not {value!r}")


def expected_tensor(
    function: FuncOp, argument: BlockArgument
) -> tuple[torch.dtype, list[int | str]]:
    """dtype and dimensions of an argument, as `check_tensors` takes them."""
    attrs = function.arg_attrs.data[argument.index].data if function.arg_attrs else {}
    names = attrs.get("fx.dims", ArrayAttr[StringAttr]([]))
    assert isinstance(names, ArrayAttr)
    unnamed = (f"{argument.name_hint}.{d}" for d in count())
    symbolic = chain((name.data for name in names), unnamed)
    dims = [n if n >= 0 else next(symbolic) for n in tensor_shape(argument)]
    return DTYPES[element_type(argument)], dims
