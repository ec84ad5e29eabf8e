"""Numerics of block-scaled elements on torch: rounding to codes, and the scale of a block.

OCP Microscaling Formats (MX) v1.0: section 5.1, a block of k elements P under one scale X stands
for X·P; 5.2, the MX formats have k = 32 and X in E8M0 (5.4.1); 5.3, the elements; 6.3, how X and P
are chosen. NVFP4 is E2M1 in blocks of 16 under two levels of scales, one E4M3 a block and one
float32 a tensor (NVIDIA cuBLAS documentation, "1D block quantization").

A block quantized here is `encode(block / scale)`, and what it stands for is `BlockScaled`'s to say:
code · scale (· tensor scale), all in float32. Three choices that the sources leave open:

- NaN: the scale of its block is NaN (E8M0 0xFF, E4M3 0x7F), so every element of the block is.
- ±inf counts as 2^128 (`rceil`: takes the greatest scale, 2^127, as `cvt.rp.satfinite.ue8m0x2` of
  PTX does) and saturates like any element. It passes for inf again in float32; the finite elements
  beside it are rounded to a coarse grid or to 0. In NVFP4 it takes the greatest scale, 448, and
  stands for the tensor's greatest finite magnitude.
- MXINT8 (5.3.4) has elements of Q1.6. Here they are the integers of `si8` under X·2^-6, so scale
  bytes are those of the specification less 6, and −128 is unused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gqc.formats.elements import SCALES, Element

if TYPE_CHECKING:
    import torch

E8M0, E4M3 = SCALES["f8E8M0FNU"], SCALES["f8E4M3FN"]

# float32, the format of all arithmetic here.
FRACTION_BITS = 23
BINADE = 1 << FRACTION_BITS
BIAS = 127
LEAST_NORMAL = 2.0**-126
GREATEST = (2 - 2.0**-23) * 2.0**127


def encode(values: torch.Tensor, element: Element) -> torch.Tensor:
    """Codes of the nearest elements, ties to even, saturating: MX v1.0, section 6.3.

    values: any shape, taken in float32. Returns that shape in uint8, bit patterns of a float
    element, or in int8, values of a signed integer one (symmetric: the least is unused). Beyond
    ±maximum, ±inf included, is ±maximum; zeros keep their sign in floats. NaN is the NaN with all
    bits set where the element has one, else 0. Raises ValueError on an element of one sign.
    """
    import torch

    if not element.minimum < 0 < element.maximum:
        raise ValueError(f"{element.name} has codes of one sign only; use a signed element")
    values = values.float()
    if element.table:
        return encode_by_table(values, element)
    if element.is_integer:
        return (
            values.clamp(-element.maximum, element.maximum).round_().nan_to_num_(0).to(torch.int8)
        )
    if element.name in NATIVE:
        finite = values.clamp(-element.maximum, element.maximum)
        codes = finite.to(getattr(torch, NATIVE[element.name])).view(torch.uint8)
    else:
        finite = values.abs().clamp_(max=element.maximum)
        sign = values.view(torch.int32) >> 31 & 1 << element.bits - 1
        codes = (encode_magnitude(finite, element) | sign).to(torch.uint8)
    if finite.sum().isnan():  # rare, and torch is slow at masks
        nan = (1 << element.bits - 1) - 1 if element.specials != "none" else 0
        codes = torch.where(values.isnan(), nan, codes).to(torch.uint8)
    return codes


def encode_by_table(values: torch.Tensor, element: Element) -> torch.Tensor:
    """Codes of the nearest values in a codebook; between two, the lower one. NaN is the code of 0,
    or of the least magnitude."""
    import torch

    table = torch.tensor(element.table, device=values.device)
    ordered, codes = table.sort(stable=True)
    places = torch.bucketize(values.nan_to_num(0.0), (ordered[1:] + ordered[:-1]) / 2)
    return codes.to(torch.uint8)[places]


def encode_magnitude(magnitude: torch.Tensor, element: Element) -> torch.Tensor:
    """Codes in int32 of float32 from 0 to the element's maximum."""
    import torch

    # Subnormals have the exponent of the least normals. Codes of one sign are consecutive, so a
    # significand that rounds up to the next power of two carries into the exponent.
    biased = magnitude.view(torch.int32) >> FRACTION_BITS
    exponent = biased.sub_(BIAS - element.bias).clamp_(min=1)  # as the element biases it
    significand = magnitude * power_of_two(element.bias + element.mantissa - exponent)
    codes = exponent.sub_(1).bitwise_left_shift_(element.mantissa)
    return codes.add_(significand.round_().to(torch.int32))


NATIVE = {"f8E4M3FN": "float8_e4m3fn", "f8E5M2": "float8_e5m2"}
"""Elements that torch rounds to itself, and its names of them."""


def power_of_two(exponent: torch.Tensor) -> torch.Tensor:
    """2^exponent in float32, for int32 exponents of its normal numbers (−126 to 127)."""
    import torch

    return (exponent + BIAS << FRACTION_BITS).view(torch.float32)


MX_ROUNDING: dict[str, Callable[[Element], int]] = {
    # MX v1.0, section 6.3: the greatest power of two in amax over that in the element format.
    "floor": lambda e: 0,
    # The same once amax is rounded, half up, to as many bits as the element has.
    "even": lambda e: BINADE >> 1 + (e.mantissa or e.emax),
    # The least power of two that is not below amax, over that in the element format.
    "ceil": lambda e: BINADE - 1,
    # The least under which nothing saturates: amax / maximum, rounded up. NVIDIA's, of the same
    # cuBLAS documentation: see above.
    "rceil": lambda e: BINADE - 1 - int((e.maximum / 2**e.emax - 1) * BINADE),
}
"""How E8M0 scales are rounded: what is added to the bits of amax, in float32, before its exponent
is taken and the element's `emax` subtracted."""

INF_IS_GREATEST = ("rceil",)
"""Roundings under which inf takes the greatest scale."""


def whole_quanta(element: Element) -> tuple[int, int]:
    """How to find 2^23 quanta of the element at a magnitude, which added round it to a quantum.

    (least, up): in bits of float32, the greater of the magnitude's power of two and `least`, plus
    `up`. Subnormals have the quantum of the least normals; integers have one quantum.
    """
    if element.is_integer:
        return BIAS + FRACTION_BITS << FRACTION_BITS, 0
    return (
        BIAS + 1 - element.bias << FRACTION_BITS,
        FRACTION_BITS - element.mantissa << FRACTION_BITS,
    )


def mx_scale(amax: torch.Tensor, element: Element, rounding: str) -> torch.Tensor:
    """Scales of MX blocks, float8_e8m0fnu in the shape of `amax`.

    amax: the greatest magnitude of each block, in float32. `rounding`: a row of `MX_ROUNDING`.
    Scales are powers of two from 2^-127 (bytes 0, of blocks of zeros too) to 2^127 (bytes 254); the
    scale of a NaN is NaN (byte 255).
    """
    import torch

    raised = amax.view(torch.int32) + MX_ROUNDING[rounding](element)
    biased = ((raised >> FRACTION_BITS) - element.emax).clamp(0, BIAS + BIAS)
    if rounding in INF_IS_GREATEST:
        biased = torch.where(amax.isinf(), BIAS + BIAS, biased)
    biased = torch.where(amax.isnan(), (1 << E8M0.bits) - 1, biased)
    return biased.to(torch.uint8).view(torch.float8_e8m0fnu)


def f32_scale(
    amax: torch.Tensor, element: Element, tensor_scale: torch.Tensor | None = None
) -> torch.Tensor:
    """Scales of blocks in float32, in the shape of `amax`: amax over the element's maximum.

    amax: the greatest magnitude of each block, in float32; inf counts as float32's greatest number.
    Scales are at least float32's least normal number, that of blocks of zeros, so that none is 0;
    the scale of a NaN is NaN.
    """
    return (amax.clamp(max=GREATEST) / element.maximum).clamp(min=LEAST_NORMAL)


def nvfp4_tensor_scale(amax: torch.Tensor, element: Element) -> torch.Tensor:
    """Scale of a tensor, a float32 scalar: its greatest block gets the greatest scale.

    amax: the greatest magnitude of each block, in float32; inf and NaN are left out. The scale is
    amax / (448 · 6), for elements of E2M1, at least float32's least normal number; 1 for zeros.
    """
    import torch

    finite = torch.where(amax.isfinite(), amax, 0).flatten()
    greatest = finite.amax() if finite.numel() else finite.sum()
    scale = (greatest / (E4M3.maximum * element.maximum)).clamp(min=LEAST_NORMAL)
    return torch.where(greatest == 0, 1.0, scale)


def nvfp4_scale(
    amax: torch.Tensor, element: Element, tensor_scale: torch.Tensor | None
) -> torch.Tensor:
    """Scales of NVFP4 blocks, float8_e4m3fn in the shape of `amax`: amax / 6 / tensor scale.

    amax: the greatest magnitude of each block, and `tensor_scale` a scalar, both in float32; None
    is 1. Scales go from 2^-9, E4M3's least, so that none is 0, to 448; the scale of a NaN is NaN.
    """
    import torch

    scale = amax / element.maximum
    if tensor_scale is not None:
        scale = scale / tensor_scale
    return encode(scale.clamp(min=E4M3.decode(1)), E4M3).view(torch.float8_e4m3fn)
