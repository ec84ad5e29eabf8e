"""Types of elements that are codes of a table: `nf4` in block-scaled types, elsewhere `!gq.nf4`."""

from __future__ import annotations

from xdsl.ir import Attribute, ParametrizedAttribute, TypeAttribute
from xdsl.irdl import irdl_attr_definition
from xdsl.parser import AttrParser

from gqc.formats.elements import CODEBOOKS


class CodebookType(ParametrizedAttribute, TypeAttribute):
    """One row of `gqc.formats.elements.CODEBOOKS`, whose name it is as a string."""

    def __str__(self) -> str:
        return self.name.removeprefix("gq.")


def codebook_type(name: str) -> CodebookType:
    """The type of a codebook, by the name of its row."""
    defined = type(name, (CodebookType,), {"name": f"gq.{name}", "__doc__": CodebookType.__doc__})
    return irdl_attr_definition(defined)()


CODEBOOK_TYPES = {element.name: codebook_type(element.name) for element in CODEBOOKS}
"""Types by name."""


def parse_element(parser: AttrParser) -> Attribute:
    """The type of an element format: a builtin type, or the name of a codebook."""
    name = parser.parse_optional_keyword_in(CODEBOOK_TYPES)
    return parser.parse_type() if name is None else CODEBOOK_TYPES[name]
