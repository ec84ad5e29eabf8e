"""gqc's own format, read: see `gqc.checkpoints.write_gqc` for what it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gqc.checkpoints.bits import unpack, words_of
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.microscaled import NATIVE, e8m0, positive
from gqc.checkpoints.reader import Layer, Reader
from gqc.checkpoints.weights import Permuted, Prescaled, Rotated, Transposed, Weight
from gqc.checkpoints.write_gqc import PARTS, VERSION
from gqc.checkpoints.writer import WRAPPERS, Form
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import Scheme, parse_scheme

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

TYPE = re.compile(r"[\w?x]{1,40}( [:=] |, |[\w?]+){4,40}", re.ASCII)
SCALES = {"f16": "F16", "bf16": "BF16", "f32": "F32", "f8E4M3FN": "F8_E4M3"}
"""Formats of scales and zero points as they are stored, but E8M0, which is bytes."""
LARGEST = 1 << 40
"""No dimension has as many elements."""
ORIGIN = 100
"""Characters of an origin that are read."""
ROTATIONS = tuple(1 << i for i in range(1, 13))
FACTORS = ("F16", "BF16", "F32")


class Gqc(Reader):
    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        version = option(quantization, "version", int)
        if not 1 <= version <= VERSION:
            raise GqcError(
                f"quantization config: version is {version}, and this gqc reads up to {VERSION}: "
                "upgrade gqc"
            )
        forms = [read_form(form) for form in option(quantization, "forms", list)]
        layers = option(quantization, "layers", dict)
        for name, index in layers.items():
            if type(index) is not int or not 0 <= index < len(forms):
                raise GqcError(f"quantization config: {name} has the form {index!r}, which is none")
        self.forms: dict[str, Form] = {name: forms[index] for name, index in layers.items()}
        self.owners = {f"{name}.{part}": name for name in layers for part in PARTS}

    def names(self) -> list[str]:
        stored = (self.owners.get(name, name) for name in self.tensors.specs)
        return list(dict.fromkeys([*stored, *self.forms]))

    def read(self, name: str) -> Weight:
        if name not in self.forms:
            if name in self.owners:
                raise GqcError(f"no parameter is called {name!r}: names() has those that are")
            return super().read(name)
        layer, form = Layer(self.tensors, name), self.forms[name]
        weight: Any = block_scaled(layer, form)
        for kind, number in reversed(form.wrappers):
            weight = UNWRITTEN[kind](layer, form.shape, weight, number)
        return weight

    def form(self, name: str) -> Form | None:
        """The form of a weight, without reading it; None for a dense one."""
        return self.forms.get(name)

    def origin(self, name: str) -> str:
        return self.forms[name].origin if name in self.forms else ""

    def activation(self, name: str) -> Scheme | None:
        return self.forms[name].activation if name in self.forms else None

    def input_scale(self, name: str) -> torch.Tensor | None:
        layer = Layer(self.tensors, name)
        known = name in self.forms and layer.has("input_scale")
        return layer.number("input_scale") if known else None


def read_form(value: Any) -> Form:
    """A form of the config. Raises GqcError if it is none."""
    if not isinstance(value, dict):
        raise GqcError(f"quantization config: the form {value!r} is no object")
    type_ = read_type(option(value, "type", str))
    shape, wrappers = option(value, "shape", list), option(value, "wrappers", list)
    if any(type(extent) is not int or not 0 < extent < LARGEST for extent in shape):
        raise GqcError(f"quantization config: {shape!r} is no shape")
    if len(shape) != len(type_.block) or len(shape) < 2:
        raise GqcError(f"quantization config: blocks of {type_} in a weight {shape}")
    sizes = type_.block_of(shape)
    if any(n % b for n, b in zip(shape, sizes, strict=True)):
        raise GqcError(f"quantization config: {type_} does not divide a weight {shape}")
    x = option(value, "activation", str, "")
    activation = parse_scheme(x) if x else None
    origin = option(value, "origin", str, "")[:ORIGIN]
    return Form(type_, tuple(shape), read_wrappers(wrappers, shape), activation, origin)


def read_type(text: str) -> BlockScaledType:
    """A block-scaled type from its text. Raises GqcError if it is none."""
    from xdsl.utils.exceptions import ParseError

    from gqc.dialects.gq import BlockScaledType
    from gqc.dialects.text import parse_block_scaled

    try:
        if len(text) > 120 or TYPE.fullmatch(text) is None:
            raise ValueError("no such text")
        type_ = parse_block_scaled(text)
    except (ParseError, ValueError) as error:
        raise GqcError(f"quantization config: {text[:120]!r} is no block-scaled type") from error
    assert isinstance(type_, BlockScaledType)
    return type_


def read_wrappers(value: list[Any], shape: Sequence[int]) -> tuple[tuple[str, int | None], ...]:
    """The wrappers of a form. Raises GqcError on unknown ones, and on numbers out of range."""
    allowed = {
        "Permuted": range(len(shape)),
        "Rotated": [b for b in ROTATIONS if not shape[-1] % b],
    }
    wrappers = []
    for each in value:
        kind, number = each if isinstance(each, list) and len(each) == 2 else (None, None)
        if not isinstance(kind, str) or kind not in WRAPPERS or kind in dict(wrappers):
            raise GqcError(f"quantization config: {each!r} is no wrapper, or twice there")
        if number not in allowed.get(kind, (None,)) or isinstance(number, bool | float):
            raise GqcError(f"quantization config: {kind} with {number!r}, for a weight {shape}")
        wrappers.append((kind, number))
    return tuple(wrappers)


def block_scaled(layer: Layer, form: Form) -> BlockScaled:
    """The block-scaled weight of a layer, whose parts are those of its form."""
    type_, shape = form.type, form.shape
    element, blocks = type_.format, type_.scale_shape(shape)
    width = shape[-1] if element.name in NATIVE else words_of(shape[-1], element.bits, 8)
    codes = layer.read("codes", [NATIVE.get(element.name, "U8")], (*shape[:-1], width))
    codes = codes.view(torch.uint8)
    if element.name not in NATIVE:
        codes = unpack(codes, element.bits, shape[-1])
    if element.is_signed_integer:
        codes = signed(codes, element.bits)
    scale, zero = floats(layer, "scale", str(type_.scale), blocks), None
    if type_.mode.integer:
        stored = layer.read("zero", ["U8"], (*blocks[:-1], words_of(blocks[-1], element.bits, 8)))
        zero = unpack(stored, element.bits, blocks[-1])
    elif type_.has_zero:
        zero = floats(layer, "zero", str(type_.zero), blocks)
    whole = layer.number("tensor_scale") if type_.has_tensor_scale else None
    return BlockScaled(type_, codes.contiguous(), scale, zero, whole)


def signed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes in two's complement, uint8, as int8."""
    half = 1 << bits - 1
    return (codes ^ half).view(torch.int8) - half if bits < 8 else codes.view(torch.int8)


def floats(layer: Layer, part: str, format: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Scales or zero points of a format. Scales have no sign where the format is of 8 bits."""
    if format not in SCALES:
        return e8m0(layer, part, *shape)
    values = layer.read(part, [SCALES[format]], shape)
    return positive(layer, part, values) if values.dtype == torch.float8_e4m3fn else values


def permuted(layer: Layer, shape: tuple[int, ...], weight: Any, dim: int) -> Permuted:
    order = layer.read("order", ["I32"], (shape[dim],)).long()
    if not torch.equal(order.sort().values, torch.arange(len(order))):
        raise layer.error("order", f"is no order of {len(order)} channels")
    return Permuted(weight, order, dim)


def prescaled(layer: Layer, shape: tuple[int, ...], weight: Any, number: None) -> Prescaled:
    return Prescaled(weight, layer.read("factor", FACTORS, (shape[-1],)))


UNWRITTEN: dict[str, Any] = {
    "Permuted": permuted,
    "Prescaled": prescaled,
    "Rotated": lambda layer, shape, weight, block: Rotated(weight, block),
    "Transposed": lambda layer, shape, weight, number: Transposed(weight),
}
"""What puts the wrappers of a form around a weight."""
