"""The table of element formats: what one code of a quantized tensor, a scale or a zero point is.

Names are the spellings of the IR. Integers of any width are two's complement (`siN`) or unsigned
(`uiN`). Floating-point formats follow OCP Microscaling Formats v1.0, section 5.3, for the 4-, 6-
and 8-bit elements and the E8M0 scale, and OCP 8-bit Floating Point v1.0 for E4M3 and E5M2. The
values of a codebook are in a table: a new one is a new entry of `CODEBOOKS`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from functools import cached_property

INTEGER_BITS = (1, 2, 3, 4, 5, 6, 7, 8)
"""Widths of integer elements; a new width is a new entry here."""


@dataclass(frozen=True)
class Element:
    """One row of the table. `exponent` and `mantissa` are field widths, 0 for integers.

    table: of a codebook, the value of each code, in float32; empty for other elements.
    """

    name: str
    bits: int
    signed: bool = True
    exponent: int = 0
    mantissa: int = 0
    bias: int = 0
    specials: str = "none"
    """Codes that are no finite numbers: `none`, `nan` (one magnitude), `ieee` (inf and nan)."""
    table: tuple[float, ...] = ()

    @property
    def is_integer(self) -> bool:
        return self.exponent == 0 and not self.table

    @property
    def is_signed_integer(self) -> bool:
        """Whether a code is two's complement; those of floats are bit patterns, without a sign."""
        return self.is_integer and self.signed

    @property
    def significant(self) -> int:
        """Significant bits of the values, at most; the least of a signed integer has one."""
        if self.table:
            return max(map(significant_bits, self.table))
        if not self.is_integer:
            return self.mantissa + 1
        return max(1, self.bits - self.signed)

    @cached_property
    def middle(self) -> float:
        """Half of how many codes an unsigned integer has, which makes them signed ones; else 0.

        Codes of one bit have none: -1 and 0 are no nearer to zero than 0 and 1."""
        has_middle = self.is_integer and not self.signed and self.bits > 1
        return 2.0 ** (self.bits - 1) if has_middle else 0.0

    @cached_property
    def minimum(self) -> float:
        return min(v for v in self.values if math.isfinite(v))

    @cached_property
    def maximum(self) -> float:
        return max(v for v in self.values if math.isfinite(v))

    @cached_property
    def emax(self) -> int:
        """Exponent of the greatest power of two among the values."""
        return math.frexp(self.maximum)[1] - 1

    @cached_property
    def values(self) -> tuple[float, ...]:
        """The value of every code, in the order of their bit patterns (2**bits of them)."""
        if self.bits > 8:
            raise ValueError(f"{self.name} is too wide for a table of values")
        return tuple(self.decode(code) for code in range(1 << self.bits))

    def decode(self, code: int) -> float:
        """Value of one bit pattern."""
        if self.table:
            return self.table[code]
        if self.is_integer:
            return float(code - (1 << self.bits) if self.signed and code >> self.bits - 1 else code)
        sign = -1.0 if self.signed and code >> (self.bits - 1) else 1.0
        exponent = code >> self.mantissa & (1 << self.exponent) - 1
        fraction = code & (1 << self.mantissa) - 1
        top = exponent == (1 << self.exponent) - 1
        if top and self.specials == "ieee":
            return sign * math.inf if fraction == 0 else math.nan
        if top and self.specials == "nan" and fraction == (1 << self.mantissa) - 1:
            return math.nan
        if exponent == 0 and self.mantissa > 0:
            return sign * math.ldexp(fraction, 1 - self.bias - self.mantissa)
        return sign * math.ldexp(
            (1 << self.mantissa) + fraction, exponent - self.bias - self.mantissa
        )


def significant_bits(value: float) -> int:
    """Significant bits of a finite number."""
    whole = abs(value.as_integer_ratio()[0])
    return len(f"{whole:b}".rstrip("0"))


def integers() -> list[Element]:
    return [
        Element(f"{'s' if signed else 'u'}i{bits}", bits, signed)
        for bits in INTEGER_BITS
        for signed in (False, True)
    ]


FLOATS = [
    Element("f4E2M1FN", 4, exponent=2, mantissa=1, bias=1),
    Element("f6E2M3FN", 6, exponent=2, mantissa=3, bias=1),
    Element("f6E3M2FN", 6, exponent=3, mantissa=2, bias=3),
    Element("f8E4M3FN", 8, exponent=4, mantissa=3, bias=7, specials="nan"),
    Element("f8E5M2", 8, exponent=5, mantissa=2, bias=15, specials="ieee"),
]


def codebook(name: str, *values: float) -> Element:
    """A row for values in the order of their codes, rounded to float32."""
    rounded = struct.unpack(f"{len(values)}f", struct.pack(f"{len(values)}f", *values))
    return Element(name, (len(values) - 1).bit_length(), table=rounded)


TWELFTHS = (0, 0.0625, 8, 12, 4, 6, 2, 3)

CODEBOOKS = [
    # Quantiles of the normal distribution, with 0 (Dettmers et al., arXiv 2305.14314, appendix E).
    codebook(
        "nf4",
        *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453),
        *(-0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0),
        *(0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224),
        *(0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0),
    ),
    # bitsandbytes' FP4: a sign and three bits. It is not E2M1, though most of its values are.
    codebook("fp4_bnb", *(sign * n / 12 for sign in (1, -1) for n in TWELFTHS)),
    # llama.cpp's values of IQ4_NL and IQ4_XS.
    codebook(
        "iq4_nl",
        *(-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113),
    ),
]

ELEMENTS: dict[str, Element] = {e.name: e for e in [*integers(), *FLOATS, *CODEBOOKS]}
"""Element formats of quantized tensors, by IR name."""

SCALES: dict[str, Element] = {
    e.name: e
    for e in [
        Element("f8E8M0FNU", 8, signed=False, exponent=8, mantissa=0, bias=127, specials="nan"),
        ELEMENTS["f8E4M3FN"],
        Element("f16", 16, exponent=5, mantissa=10, bias=15, specials="ieee"),
        Element("bf16", 16, exponent=8, mantissa=7, bias=127, specials="ieee"),
        Element("f32", 32, exponent=8, mantissa=23, bias=127, specials="ieee"),
    ]
}
"""Formats of scales and floating-point zero points, by IR name."""
