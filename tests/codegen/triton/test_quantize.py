"""What compilers make of quantizing kernels."""

from __future__ import annotations

import os
import sys

import pytest

from gqc.codegen.triton import check, compile_many
from gqc.dialects.tile import KernelOp
from gqc.passes.quantize_kernel import Packed

TRITON36 = os.environ.get("GQC_TRITON36_PYTHON")
MX, NVFP4 = "1x32 : f8E8M0FNU", "1x16 : f8E4M3FN : f4E2M1FN, global = f32"
LINEAR, SWIZZLED, SHUFFLED = map(Packed, ("linear", "swizzle_32_4_4", "shuffle_32_8"))

KERNELS = [
    ("sm_100", NVFP4, "amax", SWIZZLED, "F2FP.SATFINITE.E2M1"),
    ("sm_120", f"{MX} : f4E2M1FN", "even", LINEAR, "F2FP.SATFINITE.E2M1"),
    ("gfx950", f"{MX} : f8E4M3FN", "floor", SHUFFLED, "v_"),
    ("sm_90", f"{MX} : f6E2M3FN", "floor", None, "F2FP.BF16"),
]
OLDER_KERNELS = [
    ("sm_100", f"{MX} : f8E5M2", "rceil", SWIZZLED, "F2FP.SATFINITE.E5M2"),
    ("sm_120", NVFP4, "amax", LINEAR, "F2FP.SATFINITE.E2M1"),
    ("gfx950", f"{MX} : f4E2M1FN", "floor", SHUFFLED, "v_"),
]
"""Target, format, rule, form (None: decoded), and an instruction that must be there."""

FUSED = [
    ("sm_100", "hugging_face", "mxfp8", "MUFU.RSQ"),
    ("sm_100", "silu", "mxfp4", "MUFU.EX2"),
    ("sm_120", "torch", "mxfp4", "MUFU.RSQ"),
    ("sm_90", "silu", "mxfp6", "MUFU.EX2"),
    ("gfx950", "hugging_face", "mxfp4", "v_rsq"),
]
OLDER_FUSED = [FUSED[0], FUSED[1], FUSED[4]]
"""Target, what computes the activation, scheme, and an instruction that must be there."""


def problems(python: str, kernels: list[tuple[KernelOp, str, str]]) -> list[str]:
    """What is wrong with kernels, given each with its target and an instruction."""
    jobs = [(kernel, target) for kernel, target, _ in kernels]
    found = []
    for (_, target, instruction), built in zip(kernels, compile_many(jobs, python), strict=True):
        found += [f"{target}: {problem}" for problem in check(built)]
        if not any(opcode.startswith(instruction) for opcode in built.instructions):
            found.append(f"{target}: no {instruction}")
    return found


def alone(activation, kernels: list) -> list[tuple[KernelOp, str, str]]:
    return [
        (activation(format, rule, k=4096).kernel(target, form), target, instruction)
        for target, format, rule, form, instruction in kernels
    ]


def fused(producer, kernels: list) -> list[tuple[KernelOp, str, str]]:
    return [
        (producer(kind, 5760).kernel(target, scheme), target, instruction)
        for target, kind, scheme, instruction in kernels
    ]


def test_quantizers_pass_the_gates(activation, producer) -> None:
    kernels = [*alone(activation, KERNELS), *fused(producer, FUSED)]
    assert problems(sys.executable, kernels) == []


@pytest.mark.skipif(
    not TRITON36, reason="GQC_TRITON36_PYTHON names no Python with Triton 3.6 (make test sets it)"
)
def test_quantizers_pass_the_gates_with_triton_3_6(activation, producer) -> None:
    assert TRITON36 is not None
    kernels = [*alone(activation, OLDER_KERNELS), *fused(producer, OLDER_FUSED)]
    assert problems(TRITON36, kernels) == []
