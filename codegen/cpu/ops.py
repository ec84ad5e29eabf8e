"""Make `llvm` dialect ops and their attributes, many of one kind in little time.

xDSL's constructors turn all they are given into attributes and verify these, which takes longer
than the rest of lowering does. So attributes are made once, and so are ops, but for their operands.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import cache
from typing import Any

from xdsl.dialects import llvm
from xdsl.dialects.builtin import (
    DenseArrayBase,
    DenseIntOrFPElementsAttr,
    IntegerAttr,
    IntegerType,
    VectorType,
    i32,
)
from xdsl.ir import Attribute, Block, Operation, SSAValue

# Attributes


@cache
def vector_of(element: Attribute, lanes: int) -> VectorType:
    return VectorType(element, [lanes])


@cache
def integer_attribute(value: int, type_: IntegerType) -> IntegerAttr[IntegerType]:
    return IntegerAttr(value, type_)


@cache
def mask_attribute(lanes: tuple[int, ...]) -> DenseArrayBase:
    """Where each lane of a shuffle comes from."""
    return DenseArrayBase.from_list(i32, lanes)


@cache
def dense_attribute(element: Attribute, values: tuple[float, ...]) -> DenseIntOrFPElementsAttr:
    """A vector constant."""
    type_: Any = vector_of(element, len(values))
    return DenseIntOrFPElementsAttr.from_list(type_, values)


# Ops


MODELS: dict[Hashable, Operation] = {}
"""Ops by what they were made of. Types of operands are known by identity, since to hash one takes
longer than to make an op; a model holds them."""


def build(kind: Callable[..., Operation], operands: Sequence[SSAValue], *others: Hashable) -> Any:
    """`kind(*operands, *others)`, an op without regions: several times as fast as that."""
    key = kind, others, *[id(value.type) for value in operands]
    model = MODELS.get(key)
    if model is None:
        block = Block(arg_types=[value.type for value in operands])
        model = MODELS[key] = kind(*block.args, *others)
    return type(model).create(
        operands=operands, result_types=model.result_types, properties=model.properties
    )


def load_op(address: SSAValue, type_: Attribute, align: int) -> Operation:
    return llvm.LoadOp(address, type_, alignment=align)


def store_op(value: SSAValue, address: SSAValue, align: int) -> Operation:
    return llvm.StoreOp(value, address, alignment=align)


def step_op(start: SSAValue, *others: Any) -> Operation:
    """The address at a distance, of the run or known now, in elements of a type."""
    *distance, element = others
    return llvm.GEPOp.from_mixed_indices(start, distance, element)


def intrinsic_op(*others: Any) -> Operation:
    """A call, given the arguments, the name and the types of results."""
    *args, name, results = others
    return llvm.CallIntrinsicOp(name, args, results)
