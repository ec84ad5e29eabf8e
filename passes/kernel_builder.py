"""What builders of tile kernels share: the frame of a kernel, its constants, names of values."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from xdsl.builder import Builder, ImplicitBuilder
from xdsl.dialects import arith
from xdsl.dialects.builtin import IndexType, IntegerAttr, MemRefType
from xdsl.ir import Attribute, Block, Operation, SSAValue
from xdsl.parser import Parser

from gqc.dialects import tile
from gqc.dialects.gq_codebooks import parse_element
from gqc.dialects.text import context
from gqc.first_calls import LOCK


class KernelBuilder(ABC):
    """Builds the body of one kernel; `args` are its arrays by name, `entry` is its block."""

    entry: Block
    args: dict[str, SSAValue]
    constants: dict[int, SSAValue]

    @abstractmethod
    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""

    @abstractmethod
    def body(self) -> None:
        """Emit what the kernel does."""

    def fill(self) -> None:
        """Make the block: its named arguments, and the body."""
        arguments = self.arguments()
        self.entry = Block(arg_types=list(arguments.values()))
        self.args, self.constants = dict(zip(arguments, self.entry.args, strict=True)), {}
        for name, arg in self.args.items():
            arg.name_hint = name
        with building(self.entry):
            self.body()

    def constant(self, value: int) -> SSAValue:
        """An index constant, once, at the kernel's top."""
        if value not in self.constants:
            op = arith.ConstantOp(IntegerAttr(value, IndexType()))
            op.detach()
            first = self.entry.first_op
            self.entry.add_op(op) if first is None else self.entry.insert_op_before(op, first)
            self.constants[value] = named(op, f"c{value}")
        return self.constants[value]

    def units(self, value: SSAValue, size: int, name: str) -> SSAValue:
        """An offset in units of so many elements."""
        return value if size == 1 else named(arith.DivUIOp(value, self.constant(size)), name)


@contextmanager
def building(where: Block | Builder) -> Iterator[None]:
    """Ops that are made inside are inserted at a block's end, or where a builder points.

    One thread does this at a time: xDSL replaces a method of `Operation` for it.
    """
    with LOCK, ImplicitBuilder(where):
        yield


def named(op: Operation, name: str) -> SSAValue:
    """The op's result, with a name that printed kernels keep."""
    op.results[0].name_hint = name
    return op.results[0]


def element_named(name: str) -> Attribute:
    """The type of an element format, by its name in the tables."""
    return parse_element(Parser(context(), name))


def cast(value: SSAValue, element: Attribute, name: str) -> SSAValue:
    """The tile in another element type, unless it has that already."""
    if tile.element_of(value) == element:
        return value
    return named(tile.CastOp(value, element), name)
