"""Every code of every format, against ml_dtypes and numpy."""

from __future__ import annotations

import math

import ml_dtypes
import numpy as np
import pytest

from gqc.formats.elements import (
    CODEBOOKS,
    ELEMENTS,
    FLOATS,
    INTEGER_BITS,
    SCALES,
    Element,
)

SMALL_FLOATS = {
    "f4E2M1FN": ml_dtypes.float4_e2m1fn,
    "f6E2M3FN": ml_dtypes.float6_e2m3fn,
    "f6E3M2FN": ml_dtypes.float6_e3m2fn,
    "f8E4M3FN": ml_dtypes.float8_e4m3fn,
    "f8E5M2": ml_dtypes.float8_e5m2,
    "f8E8M0FNU": ml_dtypes.float8_e8m0fnu,
}
WIDE_FLOATS = {
    "f16": (np.uint16, np.float16),
    "bf16": (np.uint16, ml_dtypes.bfloat16),
    "f32": (np.uint32, np.float32),
}


def equal(ours: list[float], theirs: list[float]) -> bool:
    """Equal as IEEE values: NaN equals NaN, and zeros have signs."""
    return all(
        (math.isnan(a) and math.isnan(b)) or (a == b and math.copysign(1, a) == math.copysign(1, b))
        for a, b in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("name", SMALL_FLOATS)
def test_small_floats_decode_as_ml_dtypes_does(name: str) -> None:
    element = {**ELEMENTS, **SCALES}[name]
    codes = np.arange(1 << element.bits, dtype=np.uint8)
    theirs = codes.view(SMALL_FLOATS[name]).astype(np.float64).tolist()
    assert equal(list(element.values), theirs)


def test_no_small_float_is_left_out() -> None:
    small = {e.name for e in [*ELEMENTS.values(), *SCALES.values()] if e.exponent and e.bits <= 8}
    assert small == set(SMALL_FLOATS)


@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_16_bit_scales_decode_as_numpy_does(name: str) -> None:
    storage, dtype = WIDE_FLOATS[name]
    codes = np.arange(1 << 16, dtype=storage)
    with np.errstate(invalid="ignore"):  # signalling NaNs among the codes
        theirs = codes.view(dtype).astype(np.float64).tolist()
    assert equal([SCALES[name].decode(c) for c in range(1 << 16)], theirs)


def test_f32_scales_decode_as_numpy_does() -> None:
    corners = [0, 1, 0x7FFFFF, 0x800000, 0x3F800000, 0x7F7FFFFF, 0x7F800000, 0x7FC00000]
    rest = np.random.default_rng(0).integers(0, 1 << 31, 1000).tolist()
    codes = np.array([c | sign for c in corners + rest for sign in (0, 1 << 31)], np.uint32)
    with np.errstate(invalid="ignore"):
        theirs = codes.view(np.float32).astype(np.float64).tolist()
    assert equal([SCALES["f32"].decode(int(c)) for c in codes], theirs)


@pytest.mark.parametrize(
    ("name", "significant", "values"),
    [
        ("nf4", 24, {0: -1.0, 1: -0.6961928009986877, 7: 0.0, 8: 0.07958029955625534, 15: 1.0}),
        ("fp4_bnb", 24, {1: 0.0052083334885537624, 3: 1.0, 8: 0.0, 12: -0.3333333432674408}),
        ("iq4_nl", 7, {0: -127, 7: -10, 8: 1, 15: 113}),
    ],
)
def test_codebooks(name: str, significant: int, values: dict[int, float]) -> None:
    """Values in the order of their codes, float32, of which bf16 holds 8 significant bits."""
    element = ELEMENTS[name]
    assert element.bits == 4 and len(element.values) == 16
    assert {code: element.decode(code) for code in values} == values
    assert np.array(element.values, np.float32).tolist() == [*element.values]
    assert element.significant == significant
    assert not element.is_integer and not element.is_signed_integer


def test_values_of_iq4_nl_are_those_of_gguf() -> None:
    from gguf.quants import IQ4_NL

    assert ELEMENTS["iq4_nl"].values == tuple(IQ4_NL.kvalues)


@pytest.mark.parametrize("bits", INTEGER_BITS)
def test_integers(bits: int) -> None:
    unsigned, signed = ELEMENTS[f"ui{bits}"], ELEMENTS[f"si{bits}"]
    half = 1 << bits - 1
    assert unsigned.values == tuple(range(2 * half))
    assert signed.values == (*range(half), *range(-half, 0)), "two's complement"
    assert (unsigned.minimum, unsigned.maximum) == (0, 2 * half - 1)
    assert (signed.minimum, signed.maximum) == (-half, half - 1)


@pytest.mark.parametrize(
    "name, greatest",
    [("f4E2M1FN", 6), ("f6E2M3FN", 7.5), ("f6E3M2FN", 28), ("f8E4M3FN", 448), ("f8E5M2", 57344)],
)
def test_greatest_numbers_of_the_mx_elements(name: str, greatest: float) -> None:
    """OCP Microscaling Formats v1.0, section 5.3."""
    assert (ELEMENTS[name].minimum, ELEMENTS[name].maximum) == (-greatest, greatest)


def test_tables_are_keyed_by_name() -> None:
    assert all(name == e.name for table in (ELEMENTS, SCALES) for name, e in table.items())
    others = [e.name for e in (*FLOATS, *CODEBOOKS)]
    assert others == [n for n, e in ELEMENTS.items() if not e.is_integer]


def test_a_wide_format_has_no_table_of_values() -> None:
    with pytest.raises(ValueError, match="f32 is too wide"):
        _ = Element("f32", 32, exponent=8, mantissa=23, bias=127).values


@pytest.mark.parametrize("element", ELEMENTS.values(), ids=ELEMENTS)
def test_significant_bits_are_what_values_need(element: Element) -> None:
    def needed(value: float) -> int:
        mantissa = int(math.ldexp(abs(math.frexp(value)[0]), 53))
        return 53 - ((mantissa & -mantissa).bit_length() - 1) if mantissa else 1

    finite = [value for value in element.values if math.isfinite(value)]
    assert max(map(needed, finite)) == element.significant
