"""Every kernel for every GPU passes the gates, under the oldest Triton we promise and the newest.

What benchmarks/results/gates.json holds of a kernel counts as long as its source has not changed.
"""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import pytest

MOST = 24
"""Kernels that are compiled here."""

TRITONS = {version("triton"): sys.executable, "3.6.0": os.environ.get("GQC_TRITON36_PYTHON")}


@pytest.mark.parametrize("triton", TRITONS)
def test_every_kernel_passes_the_gates(benchmark, triton: str) -> None:
    gates, python = benchmark("gates"), TRITONS[triton]
    found = gates.known(triton)
    if python is None or not found.get("complete"):
        pytest.skip(f"no Python with Triton {triton}, or benchmarks/gates.py was not run with it")
    kernels, cases = found["kernels"], gates.cases()
    left = gates.missing(cases, kernels)
    names = [case.name for case in left]
    assert len(left) <= MOST, f"run benchmarks/gates.py --python {python}: {len(left)} have changed"
    new = gates.judge(left, python) if left else {}
    slower = [n for n in names if n in kernels and new[n]["share"] < 0.95 * kernels[n]["share"]]
    assert slower == [], "the predicted share of the roofline"
    results = {**kernels, **new}
    faults = {case.name: gates.missed(case.name, results[case.name]) for case in cases}
    assert {name: found for name, found in faults.items() if found} == {}


def test_kernels_that_changed_are_missing(benchmark) -> None:
    gates = benchmark("gates")
    one, two = (gates.Case("sm_90", f'"""Triton kernel {n} for sm_90"""', 16) for n in "ab")
    kept = {"sm_90 a": {"source": one.digest}, "sm_90 b": {"source": one.digest}}
    assert gates.missing([one, two], kept) == [two]


def test_only_the_exceptions_may_miss_a_gate(benchmark) -> None:
    gates = benchmark("gates")
    narrow, spills = "128-bit loads: w by 64 bits, could be 128", "no spills: 16 spilled to memory"
    widened, other = "sm_120 matmul_bf16_f8E5M2_f4E2M1FN_g32", "sm_120 matmul_bf16_f4E2M1FN_g32"
    assert gates.missed(widened, {"missed": [narrow, spills]}) == [spills]
    assert gates.missed(other, {"missed": [narrow]}) == [narrow]
    assert gates.missed(other, {}) == []
