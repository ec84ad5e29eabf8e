"""The weight of a compiled layer as a tensor whose values are decoded only when they are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from gqc.errors import GqcError


class Decodable(Protocol):
    """A layer that has a quantized weight."""

    def decoded(self) -> Tensor:
        """The weight, dense."""
        ...

    def refuse_write(self) -> NoReturn:
        """Raise GqcError: nothing is written to the weight."""
        ...


class QuantizedWeight(Tensor):
    """The weight of a compiled layer: a tensor of a shape, dtype and device, without values.

    Reading the values decodes the whole weight, each time. Views are such tensors too, and whatever
    writes to one raises GqcError.
    """

    layer: Decodable

    @staticmethod
    def __new__(
        cls, layer: Decodable, shape: Sequence[int], dtype: torch.dtype, device: torch.device
    ) -> QuantizedWeight:
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=device)
        self.layer = layer
        return self

    def __init__(self, *args: Any) -> None:
        super().__init__()

    @property
    def data(self) -> Tensor:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The same: it has no gradient that could be left out."""
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        self.layer.refuse_write()

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func in MEMORY:
            raise GqcError(
                f"{func.__name__}: the weight of a compiled layer has no memory of its own: take a "
                "dense copy, weight.clone()"
            )
        if func in ASKS_GRADIENTS and not any(v is None or v is False for v in args):
            args[0].layer.refuse_write()
        if func in CALLS:
            result = CALLS[func](*args, **(kwargs or {}))
            if result is not NotImplemented:
                return result
        if func in READS:
            return READS[func](decoded(args[0]), *args[1:], **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(
        cls,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        refuse_writes(func, args, kwargs)
        if any(result.alias_info is not None for result in func._schema.returns):
            return views(args[0], func, args[1:], kwargs)
        return func(*tree_map(decoded, args), **tree_map(decoded, kwargs))

    def __deepcopy__(self, memo: dict) -> Tensor:
        return self.layer.decoded()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.layer.decoded().__reduce_ex__(protocol)

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"QuantizedWeight({list(self.shape)}, dtype={self.dtype}, device='{self.device}')"


@dataclass(frozen=True)
class View:
    """One result of a function that views a weight."""

    weight: QuantizedWeight
    function: Callable[[Tensor], Any]
    place: int

    def decoded(self) -> Tensor:
        return tree_leaves(self.function(self.weight.layer.decoded()))[self.place]

    def refuse_write(self) -> NoReturn:
        self.weight.layer.refuse_write()


def views(
    weight: QuantizedWeight, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """What a function that views a weight gives, undecoded."""

    def function(tensor: Tensor) -> Any:
        return func(tensor, *args, **kwargs)

    found, tree = tree_flatten(
        function(torch.empty(weight.shape, dtype=weight.dtype, device="meta"))
    )
    dtype, device = weight.dtype, weight.device
    made = [
        QuantizedWeight(View(weight, function, place), each.shape, dtype, device)
        for place, each in enumerate(found)
    ]
    return tree_unflatten(made, tree)


def read_only(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
    """The values as an array that refuses writes, which would be lost."""
    array = tensor.numpy(*args, **kwargs)
    array.flags.writeable = False
    return array


def as_array(tensor: Tensor, dtype: Any = None, copy: bool | None = None) -> Any:
    """What `numpy.asarray` asks for."""
    array = read_only(tensor)
    return array if dtype is None else array.astype(dtype)


CALLS: dict[Callable[..., Any], Callable[..., Any]] = {}
"""Functions of weights that call the layers instead, or give NotImplemented."""

READS: dict[Callable[..., Any], Callable[..., Any]] = {
    Tensor.numpy: read_only,
    Tensor.__array__: as_array,
    Tensor.tolist: Tensor.tolist,
}
"""Methods that read values without an operator of torch."""

MEMORY = frozenset(
    getattr(Tensor, name)
    for name in (
        *("data_ptr", "untyped_storage", "storage", "_typed_storage", "share_memory_"),
        *("apply_", "map_", "__dlpack__"),
    )
)
"""Methods that give the place of the values, or write there without an operator."""

ASKS_GRADIENTS = frozenset(
    (Tensor.requires_grad_, Tensor.requires_grad.__set__, Tensor.grad.__set__)  # pyright: ignore
)
"""What would have gradients kept on a tensor that is gone after the next operator."""


def decoded(value: Any) -> Any:
    return value.layer.decoded() if isinstance(value, QuantizedWeight) else value


def refuse_writes(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """Raise GqcError if an operator would write to the weight of a compiled layer."""
    for i, argument in enumerate(func._schema.arguments):
        if argument.alias_info is None or not argument.alias_info.is_write:
            continue
        given = args[i] if i < len(args) else kwargs.get(argument.name)
        for value in tree_leaves(given):
            if isinstance(value, QuantizedWeight):
                value.layer.refuse_write()
