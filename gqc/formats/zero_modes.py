"""The table of zero modes: what codes, scales and zero points stand for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Formula = Callable[[Any, Any, Any], Any]
"""Of three operands with + − · /: tensors of one shape and dtype, or values of a kernel."""


@dataclass(frozen=True)
class ZeroMode:
    """One row. `text` and `dequantize` say what a code q is worth under scale s and zero point z.

    `code` of (w, s, z) is the unrounded code of an element w: `dequantize` solved for q. `zero` of
    (low, s, q) is the zero point under which the code q is worth `low`; None where there is none.
    `integer`: zero points are codes too, and packed as they are. (`text` is ASCII, for xDSL reads
    other strings back as bytes.)
    """

    text: str
    dequantize: Formula
    code: Formula
    zero: Formula | None = None
    shifts_codes: bool = False
    """The zero point is subtracted from codes, so a block whose range holds 0 has it exactly."""
    integer: bool = False


NONE = ZeroMode("codes * scale", lambda q, s, z: q * s, lambda w, s, z: w / s)
ORIGINAL = ZeroMode(
    "(codes - zero) * scale",
    lambda q, s, z: (q - z) * s,
    lambda w, s, z: w / s + z,
    lambda low, s, q: q - low / s,
    shifts_codes=True,
)
RESCALE = ZeroMode(
    "codes * scale + zero",
    lambda q, s, z: q * s + z,
    lambda w, s, z: (w - z) / s,
    lambda low, s, q: low - q * s,
)

ZERO_MODES: dict[str, ZeroMode] = {
    "none": NONE,
    "original": ORIGINAL,
    "rescale": RESCALE,
    "quantized": replace(ORIGINAL, integer=True),
}
"""Zero modes by IR name."""
