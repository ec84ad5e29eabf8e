"""Schemes: how a layer's weight is to be quantized, by preset name, object or module pattern.

Presets: `int4_g128`, `int8_row_sym`, `int3_g64_sym`: bits, group (or `row` for one scale a row),
asymmetric unless `_sym`. They parse to a `Scheme`, which says all choices out loud.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gqc.errors import GqcError
from gqc.formats.elements import INTEGER_BITS
from gqc.quantizers import QUANTIZERS, SCALE_RULES

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

GROUPS = (16, 32, 64, 128, 256)
"""Elements that share a scale; None is the whole row."""

PRESET = re.compile(r"int(?P<bits>\d+)_(g(?P<group>\d+)|row)(?P<sym>_sym)?$")


@dataclass(frozen=True)
class Scheme:
    """How to quantize one weight [N, K].

    element: format of a code (`ui4`, `si8`); group: elements of K that share a scale, None for all.
    scale: format of a scale. zero_mode: `none`, `original`, `rescale` or `quantized`, with the zero
    point in format `zero`. quantizer and scale_rule: how codes and scales are chosen (`rtn`, and a
    row of `gqc.quantizers.SCALE_RULES`).
    """

    element: str
    group: int | None
    scale: str = "f16"
    zero_mode: str = "none"
    zero: str | None = None
    quantizer: str = "rtn"
    scale_rule: str = "no_clip"

    def __post_init__(self) -> None:
        if self.group is not None and self.group not in GROUPS:
            raise GqcError(f"a group of {self.group}: choose one of {GROUPS}, or None for a row")
        if (self.zero is None) != (self.zero_mode == "none"):
            raise GqcError(
                f"zero_mode {self.zero_mode!r} with zero {self.zero!r}: give both or none"
            )
        for name, table in (("quantizer", QUANTIZERS), ("scale_rule", SCALE_RULES)):
            if getattr(self, name) not in table:
                known = ", ".join(table)
                raise GqcError(f"unknown {name} {getattr(self, name)!r}: choose one of {known}")

    def type(self) -> BlockScaledType:
        """The block-scaled type of a weight quantized so. Raises GqcError if there is none."""
        from xdsl.parser import Parser
        from xdsl.utils.exceptions import ParseError

        from gqc.dialects.text import context

        zero = f", zero = {self.zero}, zero_mode = {self.zero_mode}" if self.zero else ""
        text = f"!gq.block_scaled<1x{self.group or '?'} : {self.scale} : {self.element}{zero}>"

        try:
            return Parser(context(), text).parse_attribute()  # pyright: ignore[reportReturnType]
        except ParseError as error:
            raise GqcError(f"{self} is no format: {error}") from error

    def __str__(self) -> str:
        """The text that `parse_scheme` reads back."""
        group = f"g{self.group}" if self.group else "row"
        zero = f" zero={self.zero} zero_mode={self.zero_mode}" if self.zero else ""
        choice = f"quantizer={self.quantizer} scale_rule={self.scale_rule}"
        return f"{self.element} {group} scale={self.scale}{zero} {choice}"


def preset(name: str) -> Scheme:
    """The scheme that a preset name stands for. Raises GqcError on any other name."""
    match = PRESET.match(name)
    bits, group = (int(match["bits"]), match["group"]) if match else (0, None)
    if match is None or bits not in INTEGER_BITS or (group and int(group) not in GROUPS):
        raise GqcError(
            f"unknown scheme {name!r}: write int<bits>_g<group> or int<bits>_row, with _sym for "
            f"symmetric; bits are {INTEGER_BITS}, groups {GROUPS} (for example int4_g128)"
        )
    size = int(group) if group else None
    if match["sym"]:
        if bits == 1:
            raise GqcError(f"scheme {name!r}: one signed bit is 0 or −1; leave _sym out")
        return Scheme(f"si{bits}", size)
    return Scheme(f"ui{bits}", size, zero_mode="rescale", zero="f16", scale_rule="minmax")


def parse_scheme(text: str) -> Scheme:
    """A scheme from a preset name, or from the text of a `Scheme`. Raises GqcError on any other."""
    if " " not in text:
        return preset(text)
    element, group, *options = text.split()
    try:
        size = None if group == "row" else int(group.removeprefix("g"))
        return Scheme(element, size, **dict(option.split("=") for option in options))
    except (TypeError, ValueError) as error:
        raise GqcError(f"scheme {text!r} cannot be read: {error}") from error


SchemeLike = str | Scheme
KEEP = "keep"
"""In place of a scheme: leave the layer as it is."""


def scheme_list(
    scheme: SchemeLike | Mapping[str, SchemeLike], ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """What `scheme=` and `ignore=` ask for, as `pattern=scheme` entries, first match first.

    A pattern is a module's name or a shell-style wildcard (`model.layers.*.mlp.*`). Raises GqcError
    on an unknown preset.
    """
    entries = scheme if isinstance(scheme, Mapping) else {"*": scheme}
    ignore = (ignore,) if isinstance(ignore, str) else ignore
    for value in entries.values():
        if isinstance(value, str) and value != KEEP:
            parse_scheme(value)
    return (*(f"{pattern}={KEEP}" for pattern in ignore), *(f"{p}={s}" for p, s in entries.items()))


def match_scheme(entries: Sequence[str], module: str) -> tuple[str, str] | None:
    """The first entry whose pattern a module's name matches, split at its `=`; None without one."""
    for entry in entries:
        pattern, scheme = entry.split("=", 1)
        if fnmatch.fnmatchcase(module, pattern):
            return pattern, scheme
    return None
