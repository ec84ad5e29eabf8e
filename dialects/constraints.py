"""Numbered constraints: every verifier names the constraint that failed."""

from __future__ import annotations

from xdsl.ir import Operation
from xdsl.utils.exceptions import VerifyException


def require(
    condition: bool, op: Operation | str, constraint: str, message: str, *values: object
) -> None:
    """Raise `VerifyException("<name> <constraint>: <message>")` unless the condition holds.

    `op` is the operation, or the name of a type or attribute, whose docstring lists the constraint.
    Each `{}` of the message stands for one of `values`, which are printed only then: printing types
    takes longer than verifying them.
    """
    if not condition:
        name = op if isinstance(op, str) else op.name
        text = message.format(*values) if values else message
        raise VerifyException(f"{name} {constraint}: {text}")
