"""Kernels with epilogues: how they are printed, and that they compile for GPUs of each kind."""

from __future__ import annotations

import os
import sys

import pytest

from gqc.codegen.triton import check, compile_many, emit

INT4 = "1x32 : f16 : ui4, zero = f16, zero_mode = rescale"
MXFP8 = "1x32 : f8E8M0FNU : f8E4M3FN"
KERNELS = [
    ("sm_80", "gelu", INT4, 0),
    ("sm_90", "silu", INT4, 2),
    ("sm_100", "silu", MXFP8, 1),
    ("sm_120", "relu", MXFP8, 2),
    ("gfx942", "tanh", INT4, 2),
    ("gfx950", "silu", MXFP8, 0),
]
"""Target, function, format of the weights and, where the target multiplies such codes as they are,
of the activations; and the bucket of rows."""

PYTHONS = {"this": sys.executable, "3.6": os.environ.get("GQC_TRITON36_PYTHON")}


def test_reads_as_a_person_would_write_it(build_fused) -> None:
    source = emit(build_fused("silu", INT4, 4096, 4096, "sm_90")[0])
    for line in (
        "half = take_panels(acc_1, 1, 0)",
        "half_1 = take_panels(acc_1, 1, 1)",
        "offs_n_1 = n // 2 + tl.arange(0, 32)",
        "silu = half / (tl.full((16, 32), 1.0, tl.float32) + value)",
        "mul = silu * half_1",
    ):
        assert line in source, source
    assert source.count("tl.store(") == 1


@pytest.mark.parametrize("triton", PYTHONS)
def test_kernels_pass_the_gates(build_fused, triton: str) -> None:
    """Nothing spills, and matrix instructions are what they are without an epilogue."""
    if (python := PYTHONS[triton]) is None:
        pytest.skip("GQC_TRITON36_PYTHON names no Python with Triton 3.6 (make test sets it)")
    jobs = []
    for target, function, form, bucket in KERNELS:
        native = form == MXFP8
        jobs.append(
            (build_fused(function, form, 4096, 4096, target, native=native)[bucket], target)
        )
    built = compile_many(jobs, python)
    assert [problem for each in built for problem in check(each)] == []
