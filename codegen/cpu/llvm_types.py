"""What xDSL's LLVM backend lacks of what the CPU kernels use: the bf16 type.

llvmlite's IR has no bfloat type and xDSL 0.74 converts none. Both tables are open, so the type is
registered rather than worked around.
"""

from __future__ import annotations

from llvmlite import ir
from xdsl.backend.llvm import convert_type
from xdsl.dialects.builtin import BFloat16Type


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
    """Make xDSL's LLVM backend convert bf16."""
    convert_type._TYPE_CONVERTERS[BFloat16Type] = lambda _: BFloat()
