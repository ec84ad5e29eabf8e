"""What benchmarks/device.py does without a GPU: numerics in Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .conftest import FOLDER


def device(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(FOLDER / "device.py"), *options],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )


def test_layers_and_dot_scaled_in_the_interpreter(tmp_path: Path) -> None:
    path = tmp_path / "device.json"
    done = device("--schemes", "nvfp4", "--output", str(path), TRITON_INTERPRET="1")
    assert done.returncode == 0, done.stdout + done.stderr
    document = json.loads(path.read_text())
    assert document["target"] == "sm_90" and "times" not in document
    rows = [*document["layers"], *document["dot_scaled"]]
    assert [row.get("made_for") for row in rows] == [None, None, "sm_100", "sm_103", "sm_120"]
    assert all(0 < row["excess"] <= 1 for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so() -> None:
    done = device()
    assert done.returncode == 1 and "no GPU here; TRITON_INTERPRET=1 runs" in done.stderr


def test_faults_are_seen(benchmark) -> None:
    script = benchmark("device")
    x, w, bias = torch.randn(3, 64).double(), torch.randn(5, 64).double(), torch.randn(5).double()
    y = x @ w.T + bias
    assert not script.is_fault({"excess": script.excess(y.bfloat16(), x, w, bias)})
    wrong = y.clone()
    wrong[2, 1] *= 1.01
    for fault in (wrong, torch.full_like(y, torch.nan)):
        assert script.is_fault({"excess": script.excess(fault.bfloat16(), x, w, bias)})
    stopped = script.attempt(lambda: script.check(8, 64, "mxfp8", "sm_20", "cpu"))
    assert script.is_fault(stopped) and "unknown target 'sm_20'" in stopped["error"]
