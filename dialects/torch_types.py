"""Types of torch values in the IR, and back."""

from __future__ import annotations

from typing import Any

import torch
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    BFloat16Type,
    ComplexType,
    Float8E4M3FNType,
    Float8E4M3FNUZType,
    Float8E5M2FNUZType,
    Float8E5M2Type,
    Float8E8M0FNUType,
    Float16Type,
    Float32Type,
    Float64Type,
    IndexType,
    IntegerType,
    NoneType,
    Signedness,
    TensorType,
)
from xdsl.ir import Attribute

ELEMENT_TYPES: dict[torch.dtype, Attribute] = {
    torch.float64: Float64Type(),
    torch.float32: Float32Type(),
    torch.float16: Float16Type(),
    torch.bfloat16: BFloat16Type(),
    torch.float8_e4m3fn: Float8E4M3FNType(),
    torch.float8_e4m3fnuz: Float8E4M3FNUZType(),
    torch.float8_e5m2: Float8E5M2Type(),
    torch.float8_e5m2fnuz: Float8E5M2FNUZType(),
    torch.float8_e8m0fnu: Float8E8M0FNUType(),
    torch.complex64: ComplexType(Float32Type()),
    torch.complex128: ComplexType(Float64Type()),
    torch.bool: IntegerType(1),
    torch.int8: IntegerType(8),
    torch.int16: IntegerType(16),
    torch.int32: IntegerType(32),
    torch.int64: IntegerType(64),
    torch.uint8: IntegerType(8, Signedness.UNSIGNED),
    torch.uint16: IntegerType(16, Signedness.UNSIGNED),
    torch.uint32: IntegerType(32, Signedness.UNSIGNED),
    torch.uint64: IntegerType(64, Signedness.UNSIGNED),
}
"""Element type of each dtype: torch's signed integers are the IR's signless ones."""

DTYPES: dict[Attribute, torch.dtype] = {type_: dtype for dtype, type_ in ELEMENT_TYPES.items()}


def tensor_type(tensor: torch.Tensor) -> TensorType:
    """IR type of a tensor; symbolic dimensions are dynamic.

    Raises TypeError on a dtype or layout that the IR has no type for.
    """
    if tensor.dtype not in ELEMENT_TYPES or tensor.layout is not torch.strided:
        raise TypeError(f"the IR has no type for a {tensor.layout} tensor of {tensor.dtype}")
    return TensorType(ELEMENT_TYPES[tensor.dtype], [extent(size) for size in tensor.shape])


def extent(size: int | torch.SymInt) -> int:
    """A size of a type's shape: symbols are dynamic, but for those that tracing has solved."""
    known = size if isinstance(size, int) else size.node.maybe_as_int()
    return DYNAMIC_INDEX if known is None else known


def value_type(value: Any) -> Attribute:
    """IR type of one value of a graph: a tensor, a symbolic or plain number, or None.

    Raises TypeError on any other value.
    """
    match value:
        case torch.Tensor():
            return tensor_type(value)
        case bool() | torch.SymBool():
            return IntegerType(1)
        case int() | torch.SymInt():
            return IndexType()
        case float() | torch.SymFloat():
            return Float64Type()
        case None:
            return NoneType()
    raise TypeError(f"the IR has no type for a value of type {type(value).__name__}")
