"""What a target makes of a pair of operands: native, emulated, or refused, and why.

The tables are `gqc.native.NATIVE` (products that matrix units take as they are stored),
`gqc.integer_dots.INTEGER_DOTS` (the same of integers on CPUs) and `gqc.targets.TARGETS` (formats
that kernels decode, types that they multiply).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

from gqc.formats.elements import SCALES
from gqc.integer_dots import integer_dot
from gqc.native import Native, native
from gqc.schemes import GROUPS, MX_ELEMENTS, WEIGHTS, Scheme
from gqc.targets import DECODES, Target

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

ACTIVATIONS = ("f16", "bf16", "f32")
"""Elements of the activations that kernels read: there is none for float64."""

CONVERT = ": convert the model, for example model.bfloat16()"
"""The remedy where activations are of an element that cannot be multiplied."""

NATIVE_BLOCKS = {"f8E8M0FNU": 32, "f8E4M3FN": 16}
"""Elements that share a scale where a matrix unit takes it, by the scale's format."""


@dataclass(frozen=True)
class Legality:
    """kind: `native`, `emulated` (decoded exactly, then multiplied as floats) or `refused`.

    native: the row of the table that says how. decoded: the float type that the operands of an
    emulated product get.
    """

    kind: str
    reason: str
    native: Native | None = None
    decoded: str | None = None


def legality(
    target: Target,
    activation: str,
    x: BlockScaledType | None,
    weight: BlockScaledType,
    shape: Sequence[int],
) -> Legality:
    """How a target multiplies x by a quantized weight [N, K] of this shape.

    activation: the float type of x before it is quantized to `x`, if it is.
    """
    if activation not in ACTIVATIONS:
        return Legality("refused", unread(activation) + CONVERT)
    if (row := native_row(target, x, weight)) is not None:
        return Legality("native", f"{row.matrix} takes {pair(x, weight)} as they are", row)
    if (problem := undecoded(weight) or unscaled(weight, shape)) is not None:
        return Legality("refused", problem)
    if x is not None and (row := integer_dot(target.name, x, weight)) is not None:
        return Legality("native", f"{row.matrix} takes {pair(x, weight)}", row)
    if x is not None and str(x.scale) == "f32" not in target.units:
        return Legality(
            "refused",
            f"the target has no dot of {x.element} by {weight.element}, and multiplies no f32, "
            "which holds codes under f32 scales: choose a scheme of weights alone, for example "
            "int4_g128, or one with 8-bit scales, for example mxfp8",
        )
    if activation not in target.units:
        return Legality(
            "refused",
            f"its activations are {activation}, the target multiplies "
            f"{' and '.join(target.units)}" + CONVERT,
        )
    decoded = decoded_type(activation, x, weight)
    if decoded is None:
        return Legality(
            "refused",
            f"its activations in {x} may be beyond 65504, the greatest f16, in which its weight of "
            f"{weight.element} under {weight.scale} is decoded" + CONVERT,
        )
    unit = f"{target.units[decoded]} in {decoded}"
    what = f"{target.name} multiplies no {pair(x, weight)}"
    return Legality("emulated", f"{what}: decoded in registers, then {unit}", decoded=decoded)


def unread(activation: str) -> str:
    """Why a layer with such activations has no kernel."""
    return f"its activations are {activation}: kernels read {', '.join(ACTIVATIONS)}"


def decoded_type(activation: str, x: BlockScaledType | None, weight: BlockScaledType) -> str | None:
    """The float type that operands are decoded to: that of the activations, as the model has them.

    Codes under f32 scales need f32. And a scale of E8M0 may be rounded up beyond what f16 holds.
    bf16 holds that, and exactly what codes of 8 bits or fewer stand for under 8-bit scales. None
    where the weight has wider ones.
    """
    if x is not None and str(x.scale) == "f32":
        return "f32"
    if activation != "f16" or x is None:
        return activation
    if str(weight.scale) in NATIVE_BLOCKS:
        return "bf16"
    return None if str(x.scale) == "f8E8M0FNU" else activation


def pair(x: BlockScaledType | None, weight: BlockScaledType) -> str:
    """The operands in words."""
    if x is None:
        return str(weight.element)
    scales = " and ".join(dict.fromkeys((str(x.scale), str(weight.scale))))
    return f"{x.element} by {weight.element} under {scales}"


MATRIX = (
    "int4_g128",
    "w4a16_mxfp4",
    "w4a16_nvfp4",
    "w8a16_mxfp8",
    *WEIGHTS,
    *MX_ELEMENTS,
    "nvfp4",
    "mxfp8_mxfp4",
    "mxfp8_mxfp6",
    "w4a8_g128",
    "w8a8_g128",
)
"""Schemes by which `gqc targets` shows what targets make of formats."""


def of_scheme(scheme: Scheme, target: Target) -> Legality:
    """How a target multiplies bf16 activations by a weight, both as a scheme has them."""
    x = None if scheme.activation is None else scheme.activation.type()
    return legality(target, "bf16", x, scheme.type(), (4096, 4096))


def native_row(target: Target, x: BlockScaledType | None, weight: BlockScaledType) -> Native | None:
    """The row of a product that the target's matrix unit takes as it is stored, or None."""
    if x is None or x.scale != weight.scale or x.has_tensor_scale != weight.has_tensor_scale:
        return None
    block = NATIVE_BLOCKS.get(str(weight.scale))
    if any(type_.has_zero or type_.block.data[-1].data != block for type_ in (x, weight)):
        return None
    row = native(target.name, x, weight)
    return row if row is not None and triton_version() >= numbers(row.since) else None


def numbers(text: str) -> tuple[int, ...]:
    """`3.6.0` as (3, 6)."""
    return tuple(int(part) for part in text.split(".")[:2])


@cache
def triton_version() -> tuple[int, ...]:
    """Version of the Triton that will compile the kernels; without one, any."""
    try:
        return numbers(version("triton"))
    except PackageNotFoundError:
        return (99,)


def undecoded(type_: BlockScaledType) -> str | None:
    """What of a format no kernel reads, with the remedy; None if they read it."""
    element, known = str(type_.element), DECODES[str(type_.element)]
    unread = [f for f in map(str, (type_.scale, type_.zero)) if f in SCALES and f not in known]
    if unread:
        names = ", ".join(known)
        return f"no kernel reads scales of {unread[0]} with {element}: choose one of {names}"
    return None


def unscaled(type_: BlockScaledType, shape: Sequence[int]) -> str | None:
    """What of a weight's blocks no kernel scales, with the remedy; None if they are scaled."""
    rows, columns = type_.block_of(shape)
    if rows != 1 or columns not in (*GROUPS, shape[1]):
        return f"no kernel scales blocks of {rows}x{columns}: choose a group of {GROUPS} or row"
    return None
