"""What an emitter has made of the values of a kernel, and what it says of those it has not."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

from xdsl.ir import Operation, SSAValue

from gqc.dialects.text import where
from gqc.errors import GqcError

T = TypeVar("T")


class UnprintedError(GqcError):
    """An operation stands where an emitter does not print it."""

    def __init__(self, emitter: str, op: Operation, fault: str):
        super().__init__(f"{emitter} does not print {op.name} here: {fault}; {where(op)}")


class Values(dict[SSAValue, T]):
    """What an emitter has made of values, all of one kind.

    Raises UnprintedError for a value of which it has made none: the operation that gives it is of a
    form that is not printed, or gives another kind.
    """

    def __init__(self, emitter: str, kind: str):
        super().__init__()
        self.emitter, self.kind = emitter, kind

    def __missing__(self, value: SSAValue) -> T:
        if isinstance(value.owner, Operation):
            fault = f"its result {value.type} is not known as {self.kind}"
            raise UnprintedError(self.emitter, value.owner, fault)
        block = value.owner.parent_op()
        assert block is not None
        fault = f"its argument %{value.name_hint} {value.type} is not known as {self.kind}"
        raise UnprintedError(self.emitter, block, fault)


@contextmanager
def emitting(op: Operation) -> Iterator[None]:
    """While an operation is printed: an error of the emitter's own bears the innermost one."""
    try:
        yield
    except GqcError:
        raise
    except Exception as error:
        if not hasattr(error, "operation"):
            error.operation = op  # pyright: ignore[reportAttributeAccessIssue]
        raise
