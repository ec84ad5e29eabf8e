"""What xDSL's LLVM backend lacks of what the CPU kernels use: the types of bf16 and 8-bit floats.

llvmlite's IR has no bfloat type and xDSL 0.74 converts none. Both tables are open, so the type is
registered rather than worked around. LLVM has no types for 8-bit floats: they are bytes there.
"""

from __future__ import annotations

from llvmlite import ir
from xdsl.backend.llvm import convert_type
from xdsl.dialects.builtin import BFloat16Type, Float8E4M3FNType, Float8E8M0FNUType


class BFloat(ir.types.Type):
    """LLVM's `bfloat`."""

    null = "0.0"
    intrinsic_name = "bf16"

    def __str__(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BFloat)

    def __hash__(self) -> int:
        return hash(BFloat)


def register() -> None:
    """Make xDSL's LLVM backend convert bf16 and the formats of scales."""
    convert_type._TYPE_CONVERTERS[BFloat16Type] = lambda _: BFloat()
    for byte in (Float8E4M3FNType, Float8E8M0FNUType):
        convert_type._TYPE_CONVERTERS[byte] = lambda _: ir.IntType(8)
