"""bfloat16, E4M3 scales and inline assembly in Triton's interpreter.

The interpreter (Triton 3.6 to 3.9) keeps bfloat16 tiles as uint16 bit patterns: its `dot`
multiplies the patterns as integers, its cast to bfloat16 drops bits where GPUs round to nearest
even, and its cast from bfloat16 gets subnormals wrong. Its `dot_scaled` (3.9) reads scales of E4M3
as if they were E8M0. Inline assembly it has none.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np


def interpreting() -> bool:
    """Whether `@triton.jit` makes interpreted functions in this process."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def widen(patterns: np.ndarray) -> np.ndarray:
    """float32 values of bfloat16 bit patterns (uint16)."""
    import numpy as np

    return (patterns.astype(np.uint32) << 16).view(np.float32)


def narrow(values: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) of float32 values, rounded to nearest even."""
    import numpy as np

    bits = np.ascontiguousarray(values, dtype=np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16
    return np.where(np.isnan(values), 0x7FC0, rounded).astype(np.uint16)


def correct_bfloat16() -> None:
    """Have the interpreter compute on bfloat16 as GPUs do; once for a process."""
    import triton.language as tl
    from triton.runtime import interpreter

    builder: Any = interpreter.InterpreterBuilder
    if getattr(builder, "exact_bfloat16", False):
        return
    cast, dot = builder.cast_impl, builder.create_dot

    def exact_cast(self: Any, src: Any, dst_type: Any) -> Any:
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            return interpreter.TensorHandle(narrow(src.data), tl.bfloat16)
        if (src.dtype.scalar, dst_type.scalar) == (tl.bfloat16, tl.float32):
            return interpreter.TensorHandle(widen(src.data), tl.float32)
        return cast(self, src, dst_type)

    def exact_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (
            interpreter.TensorHandle(widen(t.data), tl.float32)
            if t.dtype.scalar == tl.bfloat16
            else t
            for t in (a, b)
        )
        return dot(self, a, b, *rest)

    builder.cast_impl, builder.create_dot, builder.exact_bfloat16 = exact_cast, exact_dot, True


def correct_scales() -> None:
    """Have the interpreter's `dot_scaled` decode E4M3 scales as what they are; once for a process.

    Versions before 3.8 have no such function: their interpreter has no `dot_scaled`.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    from gqc.formats.elements import SCALES

    decode = getattr(interpreter, "_dot_scaled_scale_to_f32", None)
    if decode is None or getattr(interpreter, "exact_scales", False):
        return
    table = np.array(SCALES["f8E4M3FN"].values, dtype=np.float32)

    def exact(scale: Any, compute_type: Any) -> np.ndarray:
        if scale.dtype.scalar == tl.float8e4nv:
            return table[scale.data.view(np.uint8)]
        return decode(scale, compute_type)

    patched: Any = interpreter
    patched._dot_scaled_scale_to_f32, patched.exact_scales = exact, True


CONVERSION = re.compile(r"cvt\.rn\.satfinite\.(e\dm\d)x2\.f32")
FORMATS = {"e2m1": "f4E2M1FN", "e4m3": "f8E4M3FN", "e5m2": "f8E5M2"}


def convert(assembly: str, tiles: list[np.ndarray]) -> np.ndarray:
    """What the assembly of printed kernels, `cvt.rn.satfinite`, makes of tiles of float32: bytes.

    Of two tiles, the codes of the second lie above those of the first. As in the PTX ISA, NaN
    becomes the greatest value in a format that has no NaN.
    """
    import numpy as np
    import torch

    from gqc.formats.elements import ELEMENTS
    from gqc.formats.microscaling import encode

    (name,) = set(CONVERSION.findall(assembly))
    element = ELEMENTS[FORMATS[name]]
    result = np.zeros(tiles[0].shape, np.uint8)
    for i, tile in enumerate(tiles):
        if element.specials == "none":
            tile = np.where(np.isnan(tile), np.float32(element.maximum), tile)
        codes = encode(torch.from_numpy(np.ascontiguousarray(tile)), element).numpy()
        result |= codes << (i * element.bits)
    return result


def define_assembly() -> None:
    """Have the interpreter run the assembly of printed kernels."""
    import triton.language as tl
    from triton.runtime import interpreter

    class Results:
        def __init__(self, data: np.ndarray) -> None:
            self.data = data

        def get_result(self, index: int) -> Any:
            return interpreter.TensorHandle(self.data, tl.uint8)

    def create(self: Any, assembly: str, constraints: str, values: list[Any], *rest: Any) -> Any:
        return Results(convert(assembly, [v.data for v in values]))

    builder: Any = interpreter.InterpreterBuilder
    builder.create_inline_asm = create
