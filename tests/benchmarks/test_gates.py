"""Every kernel for every GPU passes the gates, under the oldest Triton we promise and the newest.

What benchmarks/results/gates.json holds of a kernel counts as long as its source has not changed.
"""

from __future__ import annotations

import os
import sys

import pytest

MOST = 24
"""Kernels that are compiled here."""

TRITONS = {"3.9.0": sys.executable, "3.6.0": os.environ.get("GQC_TRITON36_PYTHON")}


@pytest.mark.parametrize("version", TRITONS)
def test_every_kernel_passes_the_gates(benchmark, version: str) -> None:
    gates, python = benchmark("gates"), TRITONS[version]
    found = gates.known(version)
    if python is None or not found.get("complete"):
        pytest.skip(f"no Python with Triton {version}, or benchmarks/gates.py was not run with it")
    kernels, cases = found["kernels"], gates.cases()
    left = gates.missing(cases, kernels)
    names = [case.name for case in left]
    assert len(left) <= MOST, f"run benchmarks/gates.py --python {python}: {len(left)} have changed"
    new = gates.judge(left, python) if left else {}
    slower = [n for n in names if n in kernels and new[n]["share"] < 0.95 * kernels[n]["share"]]
    assert slower == [], "the predicted share of the roofline"
    results = {**kernels, **new}
    assert {case.name: gates.missed(results[case.name]) for case in cases} == {
        case.name: [] for case in cases
    }


def test_kernels_that_changed_are_missing(benchmark) -> None:
    gates = benchmark("gates")
    one, two = (gates.Case("sm_90", f'"""Triton kernel {n} for sm_90"""', 16) for n in "ab")
    kept = {"sm_90 a": {"source": one.digest}, "sm_90 b": {"source": one.digest}}
    assert gates.missing([one, two], kept) == [two]


def test_a_missed_gate_is_no_exception_elsewhere(benchmark) -> None:
    gates = benchmark("gates")
    fault = "no spills: 16 spilled to memory, 255 registers in use"
    assert gates.missed({"missed": [fault]}) == [fault] and gates.missed({}) == []
