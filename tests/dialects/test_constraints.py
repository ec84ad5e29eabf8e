"""Numbered constraints: each one that a docstring lists is tested, and quoted as it fails."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from xdsl.dialects.builtin import IntegerType, Signedness, f16
from xdsl.ir import Attribute
from xdsl.utils.exceptions import VerifyException

from gqc.dialects.constraints import require
from gqc.dialects.fx import Fx
from gqc.dialects.gq import BlockScaledType, DecisionAttr, Gq, LayoutAttr, ScheduleAttr
from gqc.dialects.tile import Tile

LIT = Path(__file__).parents[1] / "lit" / "dialects"
UI4 = IntegerType(4, Signedness.UNSIGNED)

# What the parser already refuses in text, and only Python can build.
BUILT: list[tuple[Callable[[], Attribute], str]] = [
    (lambda: LayoutAttr("rows"), "gq.layout C1: "),
    (lambda: LayoutAttr("k_words", scales="linear"), "gq.layout C3: "),
    (lambda: DecisionAttr("guessed", "why"), "gq.decision C1: "),
    (lambda: ScheduleAttr(16, (16, 16, 16), "during"), "gq.schedule C2: "),
    (lambda: BlockScaledType([0], f16, UI4), "gq.block_scaled C1: "),
    (lambda: BlockScaledType([1], f16, UI4, f16, "tinygemm"), "gq.block_scaled C4: "),
]


@pytest.mark.parametrize("build, quoted", BUILT, ids=[quoted for _, quoted in BUILT])
def test_an_attribute_that_breaks_a_constraint_is_refused(
    build: Callable[[], Attribute], quoted: str
) -> None:
    with pytest.raises(VerifyException, match=re.escape(quoted)):
        build()


def test_values_are_printed_only_where_a_constraint_fails() -> None:
    """Printing the types of a layer takes longer than verifying them."""

    class Value:
        def __str__(self) -> str:
            printed.append(self)
            return "{bad}"

    printed: list[Value] = []
    require(True, "op", "C1", "{} is not {}", Value(), 3)
    assert not printed
    with pytest.raises(VerifyException, match=r"^op C1: \{bad\} is not 3$"):
        require(False, "op", "C1", "{} is not {}", Value(), 3)
    with pytest.raises(VerifyException, match=r"^op C1: as \{\} it is$"):
        require(False, "op", "C1", "as {} it is")


@pytest.mark.parametrize("dialect", [Fx, Gq, Tile], ids=lambda d: d.name)
def test_every_constraint_is_tested(dialect: object) -> None:
    """The docstring of an operation or attribute lists `C1 …`; some test must see it quoted."""
    lit = "".join(path.read_text() for path in LIT.rglob("invalid*.mlir"))
    seen = {f"{name} {number}: " for name, number in re.findall(r"CHECK: (\S+) (C\d+): ", lit)}
    seen |= {quoted for _, quoted in BUILT}
    definitions = [*dialect.operations, *dialect.attributes]  # pyright: ignore
    listed = {
        f"{definition.name} {number}: "
        for definition in definitions
        for number in re.findall(r"\b(C\d+) ", definition.__doc__ or "")
    }
    assert listed, "no constraints found: has the form of the docstrings changed?"
    assert listed <= seen, f"not tested: {sorted(listed - seen)}"
    prefix = f"{dialect.name}."  # pyright: ignore
    ours = {s for s in seen if s.startswith(prefix)}
    assert ours <= listed, f"quoted, but in no docstring: {sorted(ours - listed)}"
