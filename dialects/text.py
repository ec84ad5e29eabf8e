"""IR as text, and back: what is wrong with a text is said in one line, with the place."""

from __future__ import annotations

import io
import re
from functools import cache
from typing import TYPE_CHECKING

from xdsl.context import Context
from xdsl.dialects import arith, builtin, func, math, memref, scf
from xdsl.dialects.builtin import ModuleOp, UnknownLoc
from xdsl.ir import Block, Operation, SSAValue
from xdsl.parser import Parser
from xdsl.printer import Printer
from xdsl.traits import IsolatedFromAbove, NoTerminator
from xdsl.utils.exceptions import ParseError, VerifyException
from xdsl.utils.lexer import Input, Span

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


def parse_ir(text: str | bytes, name: str = "<text>") -> ModuleOp:
    """Parse and verify a module. Raises `xdsl.utils.exceptions.ParseError`, `VerifyException`."""
    module = parse_module(context(), text, name)
    verify_ir(module)
    return module


def parse_module(context: Context, text: str | bytes, name: str, implicit: bool = True) -> ModuleOp:
    """Parse a module, which is not yet verified. Raises ParseError, whatever the text is.

    implicit: a text without `builtin.module` is the body of one.
    """
    parser = Parser(context, checked(text, name), name)
    try:
        return parser.parse_module(implicit)
    except VerifyException as error:  # of a type or an attribute, which knows no place
        parser.raise_error(one_line(error))
    except RecursionError as error:
        start = Span(0, 1, Input("", name))
        raise ParseError(start, "nested too deeply to be read") from error


STRINGS = re.compile(
    r'//[^\n]*|"(?:[^"\\\n\v\f]|\\(?:["nt\\]|[0-9A-Fa-f]{2}))*+"|(?P<open>")', re.ASCII
)
"""Comments, strings as xDSL's lexer knows them, and quotes that start none."""


def checked(text: str | bytes, name: str) -> str:
    """A text that xDSL can read in finite time: UTF-8, and each string ends.

    The lexer's expression for strings takes time exponential in the length of one without an end.
    Raises ParseError at the first byte or quote at fault.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf-8")
        except UnicodeDecodeError as error:
            span = Span(error.start, error.start + 1, Input(text, name))
            raise ParseError(span, f"the file is not UTF-8: {error.reason}") from error
    for match in STRINGS.finditer(text):
        if match["open"] is not None:
            span = Span(match.start(), match.start() + 1, Input(text, name))
            raise ParseError(span, "a string does not end, or has an unknown escape")
    return text


# What is wrong, and where


def verify_ir(module: ModuleOp) -> None:
    """Verify a module: its operations, and that each value is defined before it is used.

    Raises VerifyException that says where.
    """
    verify_order(module, set())  # first: what is never defined has no owner
    for op in module.walk():
        try:
            op.verify(verify_nested_ops=False)
        except VerifyException as error:
            raise VerifyException(f"{one_line(error)}; {where(op)}") from error
        for region in op.regions:
            for block in region.blocks:
                block_ends(op, block)


def block_ends(op: Operation, block: Block) -> None:
    """Raise VerifyException if a block must have a terminator and is empty."""
    if block.is_empty and len(op.regions) and not op.has_trait(NoTerminator):
        raise VerifyException(f"{op.name} holds an empty block; {where(op)}")


def verify_order(op: Operation, seen: set[SSAValue]) -> None:
    """Raise VerifyException if an operation inside of `op` reads what is not yet defined.

    seen: what is defined before. Order has no meaning in a module, nor between several blocks.
    """
    for region in op.regions:
        inside = set() if op.has_trait(IsolatedFromAbove) else set(seen)
        ordered = not isinstance(op, ModuleOp) and len(region.blocks) == 1
        for block in region.blocks:
            inside.update(block.args)
            if not ordered:
                inside.update(result for each in block.ops for result in each.results)
        for block in region.blocks:
            for each in block.ops:
                if (late := next((v for v in each.operands if v not in inside), None)) is not None:
                    name = f"%{late.name_hint}" if late.name_hint else "a value without a name"
                    raise VerifyException(f"{name} is used before it is defined; {where(each)}")
                verify_order(each, inside)
                inside.update(each.results)


LONGEST = 160
"""Characters of an operation that are quoted."""


def where(op: Operation) -> str:
    """The place of an operation: what it is in, its location if known, and its text."""
    parents, parent = [], op.parent_op()
    while parent is not None:
        if (symbol := parent.get_attr_or_prop("sym_name")) is not None:
            parents.append(f"{parent.name} @{str(symbol).strip(chr(34))}")
        parent = parent.parent_op()
    known = "" if isinstance(op.location, UnknownLoc) else f" {op.location}"
    return f"in {' in '.join([f'`{quoted(op)}`{known}', *parents])}"


def quoted(op: Operation) -> str:
    """The first line of an operation, cut where it is long."""
    try:
        text = print_ir(op, locations=False)
    except Exception:  # what is wrong with it may be why it cannot be printed
        return op.name
    return one_line(text)[:LONGEST]


def one_line(text: object) -> str:
    """A text, or what an error says, up to the end of its first line."""
    return str(text).strip().partition("\n")[0]
