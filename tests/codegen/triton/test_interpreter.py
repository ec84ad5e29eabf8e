"""Numerics of printed kernels: the files interpreted_*.py under TRITON_INTERPRET=1."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

from gqc.codegen.triton.interpreter import narrow, widen


def test_interpreted_cases_pass() -> None:
    cases = sorted(map(str, Path(__file__).parent.glob("interpreted_*.py")))
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", *cases],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_bfloat16_rounds_to_nearest_even() -> None:
    generator = np.random.default_rng(0)
    bits = generator.integers(0, 1 << 32, 100_000, dtype=np.uint32)
    ties = np.array([0x3F808000, 0x3F818000, 0xFF7FFFFF, 0x7F800000, 0x00000001], np.uint32)
    values = np.concatenate([bits, ties]).view(np.float32)
    values = values[~np.isnan(values)]
    expected = values.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(narrow(values), expected.view(np.uint16))
    np.testing.assert_array_equal(widen(narrow(values)), expected.astype(np.float32))
    assert np.isnan(widen(narrow(np.array([np.nan], np.float32))))
