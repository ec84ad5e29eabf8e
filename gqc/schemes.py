"""Schemes: how a layer's weight is to be quantized, by preset name, object or module pattern.

Presets: `int4_g128`, `int8_row_sym`, `int3_g64_sym`: bits, group (or `row` for one scale a row),
asymmetric unless `_sym`; `w4a8_g32`, `w8a8_g128_asym`: the same of weights, symmetric unless
`_asym`, and 8-bit activations; and the names of `PRESETS`, such as `w4a16_mxfp4`. They parse to a
`Scheme`, which says all choices out loud. After a name, `+awq+gptq`: what is done to the channels
of inputs before the weight is quantized (`gqc.quantizers.TRANSFORMS`), then by which quantizer.
After that, set apart by spaces, other choices for fields of `Scheme`: `int8_g32 scale=bf16`.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import permutations
from typing import TYPE_CHECKING, Any

from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS, INTEGER_BITS
from gqc.quantizers import CALIBRATED, FACTORS, RULES, TRANSFORMS, WEIGHTED

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

GROUPS = (16, 32, 64, 128, 256)
"""Elements that share a scale; None is the whole row."""

PRESET = re.compile(r"int(?P<bits>\d+)_(g(?P<group>\d+)|row)(?P<sym>_sym)?$")
A8_PRESET = re.compile(r"w(?P<bits>\d+)a8_g(?P<group>\d+)(?P<asym>_asym)?$")
"""The same with 8-bit activations: symmetric unless it says otherwise."""


@dataclass(frozen=True)
class Scheme:
    """How to quantize one weight [N, K].

    element: format of a code (`ui4`, `si8`); group: elements of K that share a scale, None for all.
    scale: format of a scale. zero_mode: `none`, `original`, `rescale` or `quantized`, with the zero
    point in format `zero`. tensor_scale: whether one f32 scales the whole tensor too. quantizer and
    scale_rule: how codes and scales are chosen, a row of `gqc.quantizers.RULES` and one of its
    rules. activation: how the layer's input is quantized as the model runs, None to leave it; it
    has a scheme of the same kind, of which `static` says that its tensor scale is calibrated before
    and not taken from each input. transforms: what is done to the channels of the layer's input
    before its weight is quantized, rows of `gqc.quantizers.TRANSFORMS` in their order.
    """

    element: str
    group: int | None
    scale: str = "f16"
    zero_mode: str = "none"
    zero: str | None = None
    quantizer: str = "rtn"
    scale_rule: str = "no_clip"
    tensor_scale: bool = False
    activation: Scheme | None = None
    static: bool = False
    transforms: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.static and not self.tensor_scale:
            raise GqcError("only a tensor scale can be static: give tensor_scale too")
        if self.activation is not None and self.activation.quantizer != "microscaling":
            raise GqcError("activations are quantized by microscaling, to floats, mxint8 or si8")
        if self.activation is not None and self.activation.group is None:
            raise GqcError(f"activations are quantized in groups: choose one of {GROUPS}")
        if self.activation is not None and ELEMENTS[self.activation.element].table:
            raise GqcError(
                f"activations are not quantized to {self.activation.element}, a codebook"
            )
        if self.group is not None and self.group not in GROUPS:
            raise GqcError(f"a group of {self.group}: choose one of {GROUPS}, or None for a row")
        if (self.zero is None) != (self.zero_mode == "none"):
            raise GqcError(
                f"zero_mode {self.zero_mode!r} with zero {self.zero!r}: give both or none"
            )
        element = ELEMENTS.get(self.element)
        if self.zero is None and element is not None and element.minimum * element.maximum == 0:
            raise GqcError(
                f"{self.element} without a zero point is {element.minimum:g} to {element.maximum:g}"
                ": choose a signed element of 2 bits or more, or give zero_mode and zero"
            )
        if self.quantizer not in RULES:
            raise GqcError(
                f"unknown quantizer {self.quantizer!r}: choose one of {', '.join(RULES)}"
            )
        rules = RULES[self.quantizer]
        if self.scale_rule not in rules:
            raise GqcError(
                f"unknown scale_rule {self.scale_rule!r}: choose one of {', '.join(rules)}"
            )
        refuse_transforms(self)

    @property
    def needs_calibration(self) -> bool:
        """Whether a layer cannot be quantized so without inputs that reach it."""
        return self.is_static or not self.parts.isdisjoint(CALIBRATED)

    @property
    def uses_calibration(self) -> bool:
        """Whether inputs that reach a layer make a difference to how it is quantized, or show what
        that costs."""
        return self.activation is not None or not self.parts.isdisjoint(WEIGHTED)

    @property
    def is_static(self) -> bool:
        """Whether the tensor scale of the layer's input is calibrated."""
        return self.activation is not None and self.activation.static

    @property
    def parts(self) -> set[str]:
        """Names of the quantizer and the transforms."""
        return {self.quantizer, *self.transforms}

    def type(self, rank: int = 2) -> BlockScaledType:
        """The type of a tensor so quantized along its last axis. Raises GqcError without one."""
        from xdsl.utils.exceptions import ParseError

        from gqc.dialects.text import parse_block_scaled

        zero = f", zero = {self.zero}, zero_mode = {self.zero_mode}" if self.zero else ""
        whole = ", global = f32" if self.tensor_scale else ""
        block = f"{'1x' * (rank - 1)}{self.group or '?'} : {self.scale} : {self.element}"
        try:
            return parse_block_scaled(f"{block}{zero}{whole}")
        except ParseError as error:
            raise GqcError(f"{self} is no format: {error}") from error

    def __str__(self) -> str:
        """The text that `parse_scheme` reads back."""
        group = f"g{self.group}" if self.group else "row"
        zero = f" zero={self.zero} zero_mode={self.zero_mode}" if self.zero else ""
        whole = " tensor_scale=f32" if self.tensor_scale else ""
        choice = f"quantizer={self.quantizer} scale_rule={self.scale_rule}"
        choice += " static=True" if self.static else ""
        choice += f" transforms={'+'.join(self.transforms)}" if self.transforms else ""
        x = f" activation={self.activation}".replace(" ", ",").replace(",", " ", 1)
        text = f"{self.element} {group} scale={self.scale}{zero}{whole} {choice}"
        return text if self.activation is None else text + x


def refuse_transforms(scheme: Scheme) -> None:
    """Raise GqcError on transforms that mean nothing, together or under this scheme."""
    names, activation = scheme.transforms, scheme.activation
    if unknown := [name for name in names if name not in TRANSFORMS]:
        raise GqcError(f"unknown transform {unknown[0]!r}: choose of {', '.join(TRANSFORMS)}")
    if sum(name in FACTORS for name in names) > 1 or len(set(names)) < len(names):
        raise GqcError(f"{'+'.join(names)}: choose one of {', '.join(FACTORS)}, once")
    if "hadamard" in names[:-1]:
        raise GqcError(f"{'+'.join(names)}: hadamard mixes channels, so it comes last of these")
    if "hadamard" in names and scheme.group is None:
        raise GqcError("hadamard rotates the elements that share a scale: give a group, not a row")
    if "smoothquant" in names and activation is None:
        raise GqcError("smoothquant is for schemes that quantize activations: use awq for weights")
    if activation is not None and activation.transforms:
        raise GqcError("transforms of an activation are its layer's: give them to that scheme")
    if activation is not None and activation.static and "hadamard" in names:
        raise GqcError("the tensor scale of a rotated activation is dynamic: leave static out")


def mx(element: str, rounding: str) -> Scheme:
    """A tensor as OCP MX v1.0 has it: blocks of 32, E8M0 scales (rounded `floor` in 6.3)."""
    return Scheme(element, 32, "f8E8M0FNU", quantizer="microscaling", scale_rule=rounding)


def under_f32(element: str, group: int | None) -> Scheme:
    """A tensor with an f32 scale for each group, or row, by its greatest element."""
    return Scheme(element, group, "f32", quantizer="microscaling", scale_rule="amax")


def int8(group: int) -> Scheme:
    """An activation as dots of bytes take it: 8-bit codes, one f32 scale a group, dynamic."""
    return under_f32("si8", group)


NVFP4 = Scheme(
    "f4E2M1FN", 16, "f8E4M3FN", quantizer="microscaling", scale_rule="amax", tensor_scale=True
)

MX_ELEMENTS = {
    "mxfp8": "f8E4M3FN",
    "mxfp8_e5m2": "f8E5M2",
    "mxfp6": "f6E2M3FN",
    "mxfp6_e3m2": "f6E3M2FN",
    "mxfp4": "f4E2M1FN",
    "mxint8": "si8",
}
"""MX formats by the element they quantize to."""

WEIGHTS = {
    "w4a16_nf4": under_f32("nf4", 64),
    "w8a16_fp8": under_f32("f8E4M3FN", None),
    "w8a16_fp8_g128": under_f32("f8E4M3FN", 128),
}
"""Formats of weights alone: NF4 as bitsandbytes has it, FP8 with one scale a row or a group."""

ROUNDINGS = {"": "floor", "_even": "even", "_ceil": "ceil", "_rceil": "rceil"}
"""Suffixes of MX presets, by how scales are rounded."""


def formats(rounding: str) -> dict[str, Scheme]:
    """Block-scaled formats by name, scales of the MX ones rounded so."""
    mx_formats = {name: mx(element, rounding) for name, element in MX_ELEMENTS.items()}
    return {**mx_formats, "nvfp4": NVFP4} if rounding == "floor" else mx_formats


def presets() -> Iterator[tuple[str, Scheme]]:
    """Weights and activations in one format, or in two (`mxfp8_mxfp4`), or weights alone."""
    for suffix, rounding in ROUNDINGS.items():
        for name, scheme in formats(rounding).items():
            bits = ELEMENTS[scheme.element].bits
            yield f"w{bits}a16_{name}{suffix}", scheme
            yield f"{name}{suffix}", replace(scheme, activation=scheme)
        for x, w in permutations(MX_ELEMENTS, 2):
            activation = formats(rounding)[x]
            yield f"{x}_{w}{suffix}", replace(formats(rounding)[w], activation=activation)
    yield "nvfp4_static", replace(NVFP4, activation=replace(NVFP4, static=True))
    yield from WEIGHTS.items()


PRESETS: dict[str, Scheme] = dict(presets())
"""Presets beside the integers'. One format is of activations and weights; of two, the first is the
activations'; after `w4a16_` it is the weights', of 4 bits, and activations are as they are."""


def preset(name: str) -> Scheme:
    """The scheme that a preset name stands for, or `name+how+how`. Raises GqcError on others."""
    name, *how = name.split("+")
    if how:
        return quantized_by(preset(name), name, how)
    if name in PRESETS:
        return PRESETS[name]
    match = PRESET.match(name) or A8_PRESET.match(name)
    bits, group = (int(match["bits"]), match["group"]) if match else (0, None)
    if match is None or bits not in INTEGER_BITS or (group and int(group) not in GROUPS):
        roundings = ", ".join(filter(None, ROUNDINGS))
        raise GqcError(
            f"unknown scheme {name!r}: write int<bits>_g<group> or int<bits>_row, with _sym for "
            f"symmetric; bits are {INTEGER_BITS}, groups {GROUPS} (for example int4_g128); or with "
            "8-bit activations w<bits>a8_g<group>, with _asym for zero points (w4a8_g32); or for "
            f"weights and activations nvfp4, nvfp4_static, {', '.join(MX_ELEMENTS)}, or two of the "
            "mx (mxfp8_mxfp4: activations first); or for weights alone w<bits>a16_<format> "
            f"(w4a16_mxfp4), or {', '.join(WEIGHTS)}; mx with {roundings} for other roundings of "
            "the scales"
        )
    size, a8 = int(group) if group else None, match.re is A8_PRESET
    if not match["asym"] if a8 else match["sym"]:
        if bits == 1:
            remedy = "add _asym" if a8 else "leave _sym out"
            raise GqcError(f"scheme {name!r}: one signed bit is 0 or −1; {remedy}")
        scheme = Scheme(f"si{bits}", size)
    else:
        scheme = Scheme(f"ui{bits}", size, zero_mode="rescale", zero="f16", scale_rule="minmax")
    return replace(scheme, activation=int8(size)) if a8 and size else scheme


def quantized_by(scheme: Scheme, name: str, how: Sequence[str]) -> Scheme:
    """A scheme, of that name, under transforms and then, or only, by another quantizer.

    The scale search is part of AWQ (its clipping), which has no other quantizer unless named.
    """
    *transforms, last = how
    quantizer = last
    if last in TRANSFORMS:
        transforms, quantizer = how, "scale_search" if "awq" in how else scheme.quantizer
    if early := [q for q in transforms if q in RULES]:
        raise GqcError(f"{name}+{'+'.join(how)}: {early[0]} comes last, and one quantizer alone")
    fitting = [q for q, rules in RULES.items() if scheme.scale_rule in rules]
    if unknown := [
        each for each in (*transforms, quantizer) if each not in (*TRANSFORMS, *fitting)
    ]:
        raise GqcError(
            f"no quantizer {unknown[0]!r} for {name}: choose one of {', '.join(fitting)}, after "
            f"any of {', '.join(TRANSFORMS)}"
        )
    return replace(scheme, quantizer=quantizer, transforms=tuple(transforms))


def parse_scheme(text: str) -> Scheme:
    """A scheme from a preset name, from one with choices after it (`int8_g32 scale=bf16`), or from
    the text of a `Scheme`. Raises GqcError on any other."""
    first, *words = text.split() or [""]
    if not words:
        return preset(first)
    if "=" in words[0]:
        return chosen(text, words, lambda choices: replace(preset(first), **choices))
    if first not in ELEMENTS:
        raise GqcError(
            f"scheme {text!r}: {first!r} is no element format ({', '.join(ELEMENTS)}); after the "
            "name of a preset write choices, for example int8_g32 scale=bf16"
        )
    group, *words = words
    return chosen(text, words, lambda choices: Scheme(first, group_of(group), **choices))


def group_of(word: str) -> int | None:
    """The group that `g32` or `row` says. Raises ValueError."""
    return None if word == "row" else int(word.removeprefix("g"))


def chosen(text: str, words: Sequence[str], make: Callable[[dict[str, Any]], Scheme]) -> Scheme:
    """What `make` gives for the choices `key=value` of a text. Raises GqcError."""
    known = [field.name for field in fields(Scheme)]
    try:
        choices: dict[str, Any] = {}
        for word in words:
            key, found, choices[key] = word.partition("=")
            if not found or key not in known:
                raise ValueError(f"{word!r} is no choice: write {'=…, '.join(known)}=…")
        for key, read in CHOICES.items():
            if key in choices:
                choices[key] = read(choices[key])
        return make(choices)
    except (TypeError, ValueError) as error:
        raise GqcError(f"scheme {text!r} cannot be read: {error}") from error


def only(word: str) -> Callable[[str], bool]:
    """What reads a choice that has one value."""

    def read(value: str) -> bool:
        if value != word:
            raise ValueError(f"it is {word} or left out, not {value}")
        return True

    return read


CHOICES: dict[str, Callable[[str], Any]] = {
    "group": group_of,
    "tensor_scale": only("f32"),
    "static": only("True"),
    "activation": lambda value: parse_scheme(value.replace(",", " ")),
    "transforms": lambda value: tuple(value.split("+")),
}
"""What reads the value of a choice that is more than a word."""


SchemeLike = str | Scheme
KEEP = "keep"
"""In place of a scheme: leave the layer as it is."""

ENTRY = re.compile(r"(?P<pattern>.*?)=(?P<scheme>[^=\s]*(\s.*)?)$")
"""`pattern=scheme`; a pattern may hold `=`, and so may a scheme after its first word."""


def scheme_list(
    scheme: SchemeLike | Mapping[str, SchemeLike], ignore: Sequence[str] = ()
) -> tuple[str, ...]:
    """What `scheme=` and `ignore=` ask for, as `pattern=scheme` entries, first match first.

    A pattern is a module's name or a shell-style wildcard (`model.layers.*.mlp.*`), in which `[ab]`
    is one of the characters a and b. Raises GqcError on an unknown preset.
    """
    entries = scheme if isinstance(scheme, Mapping) else {"*": scheme}
    ignore = (ignore,) if isinstance(ignore, str) else ignore
    refuse_patterns((*ignore, *entries))
    for value in entries.values():
        if not isinstance(value, str | Scheme):
            raise GqcError(
                f"a scheme is a {type(value).__name__}: give a name as int4_g128, a gqc.Scheme, "
                f"or a map from patterns of modules to either or {KEEP!r}"
            )
        if isinstance(value, str) and value != KEEP:
            parse_scheme(value)
    return (*(f"{pattern}={KEEP}" for pattern in ignore), *(f"{p}={s}" for p, s in entries.items()))


def refuse_patterns(patterns: Iterable[Any]) -> None:
    """Raise GqcError on a pattern that is no text."""
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise GqcError(
                f"a pattern is a {type(pattern).__name__}: give the name of a module, or a "
                "wildcard, as text"
            )


class Patterns:
    """`pattern=scheme` entries, of which the first that matches counts.

    Patterns without a wildcard are looked up: a map may name every layer of a model. Raises
    GqcError on an entry that is none.
    """

    def __init__(self, entries: Sequence[str]):
        self.entries: list[tuple[str, str]] = []
        for entry in entries:
            match = ENTRY.match(entry)
            if match is None:
                raise GqcError(f"{entry!r} is no entry: write pattern=scheme")
            self.entries.append((match["pattern"], match["scheme"]))
        patterns = [pattern for pattern, _ in self.entries]
        self.wildcards = [i for i, p in enumerate(patterns) if re.search(r"[*?[]", p)]
        self.names = {p: i for i, p in reversed([*enumerate(patterns)])}

    def match(self, module: str) -> tuple[str, str] | None:
        """Pattern and scheme of the first entry that a module's name matches; None without one."""
        first = self.names.get(module, len(self.entries))
        for i in self.wildcards:
            if i < first and fnmatch.fnmatchcase(module, self.entries[i][0]):
                return self.entries[i]
        return self.entries[first] if first < len(self.entries) else None

    def unmatched(self, modules: Iterable[str]) -> list[str]:
        """Patterns that no module's name matches."""
        modules = set(modules)
        wild = {self.entries[i][0] for i in self.wildcards}
        return [
            pattern
            for pattern, _ in self.entries
            if pattern not in modules and not (pattern in wild and fnmatch.filter(modules, pattern))
        ]


def wildcard(layer: str) -> str:
    """The layer's name with numbers for stars."""
    return ".".join("*" if part.isdigit() else part for part in layer.split("."))
