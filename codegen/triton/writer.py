"""Python text: an indenting writer, names made unique, statements laid out as a person would."""

from __future__ import annotations

import ast
import keyword
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

WIDTH = 100
INDENT = "    "


def unparse(tree: ast.AST) -> str:
    return ast.unparse(tree).replace("'", '"')


def pretty(expression: str) -> str:
    """The expression without the parentheses that precedence makes needless."""
    return unparse(ast.parse(expression, mode="eval"))


class PythonWriter:
    """Collects lines of Python; `fresh` hands out names that are used once in the file."""

    def __init__(self, reserved: set[str]) -> None:
        self.lines: list[str] = []
        self.depth = 0
        self.taken = set(reserved)

    def fresh(self, hint: str) -> str:
        """A legal name, as near to the hint as still free."""
        stem = re.sub(r"\W", "_", hint)
        if not stem or stem[0].isdigit() or keyword.iskeyword(stem):
            stem = f"_{stem}"
        name, count = stem, 0
        while name in self.taken:
            count += 1
            name = f"{stem}_{count}"
        self.taken.add(name)
        return name

    def line(self, text: str = "") -> None:
        self.lines.append(INDENT * self.depth + text if text else "")

    @contextmanager
    def indented(self) -> Iterator[None]:
        self.depth += 1
        yield
        self.depth -= 1

    @contextmanager
    def block(self, head: str) -> Iterator[None]:
        """Write `head` and indent what follows."""
        self.line(head)
        with self.indented():
            yield

    def assign(self, name: str, expression: str) -> None:
        self.statement(f"{name} = ", expression)

    def statement(self, prefix: str, expression: str) -> None:
        """Write `prefix` and the expression, without needless parentheses."""
        tree = ast.parse(expression, mode="eval").body
        if isinstance(tree, ast.Call):
            keywords = [f"{k.arg}={unparse(k.value)}" for k in tree.keywords]
            arguments = [*map(unparse, tree.args), *keywords]
            self.list(f"{prefix}{unparse(tree.func)}(", arguments, ")")
        else:
            self.line(prefix + unparse(tree))

    def list(self, head: str, items: Sequence[str], tail: str) -> None:
        """Write `head`, the items and `tail` in a line; where that is too long, an item a line."""
        text = f"{head}{', '.join(items)}{tail}"
        if len(text) + len(INDENT) * self.depth <= WIDTH:
            self.line(text)
            return
        with self.block(head):
            for item in items:
                self.line(f"{item},")
        self.line(tail)

    def text(self) -> str:
        return "\n".join(self.lines) + "\n"
