"""IR as text, and back."""

from __future__ import annotations

import io
from functools import cache
from typing import TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects import arith, builtin, func, math, memref, scf
from xdsl.dialects.builtin import ModuleOp
from xdsl.ir import Operation
from xdsl.parser import Parser
from xdsl.printer import Printer

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType


def context() -> Context:
    """A context that knows every dialect a gqc module may hold."""
    from gqc.dialects.universe import DIALECTS

    context = Context()
    for dialect in (builtin.Builtin, func.Func, scf.Scf, arith.Arith, math.Math, memref.MemRef):
        context.load_dialect(dialect)
    for load in DIALECTS.values():
        context.load_dialect(load())
    return context


class TextPrinter(Printer):
    """Prints non-ASCII strings as they are: no parser of xDSL reads them escaped in a location."""

    def print_string_literal(self, string: str) -> None:
        if string.isprintable() and not set(string) & set('"\\'):
            self.print_string(f'"{string}"')
        else:
            super().print_string_literal(string)


def print_ir(op: Operation, locations: bool = True) -> str:
    """The text of an operation; unknown locations are left out, which parses as the same."""
    stream = io.StringIO()
    TextPrinter(stream, print_debuginfo=locations).print_op(op)
    return stream.getvalue().replace(" loc(unknown)", "") + "\n"


@cache
def parse_block_scaled(text: str) -> BlockScaledType:
    """A block-scaled type from its parameters, as its `text` has them. Raises ParseError."""
    type_ = Parser(context(), f"!gq.block_scaled<{text}>").parse_attribute()
    return type_  # pyright: ignore[reportReturnType]


def parse_ir(text: str, name: str = "<text>") -> ModuleOp:
    """Parse and verify a module. Raises `xdsl.utils.exceptions.ParseError`, `VerifyException`."""
    module = Parser(context(), text, name).parse_module()
    module.verify()
    return module
