"""What starting costs: gqc and its tools must not import torch or triton before they need them."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent
HEAVY = ("torch", "triton", "transformers", "llvmlite", "matplotlib")


def heavy_modules_after(code: str) -> list[str]:
    """Which heavy packages a fresh Python has loaded after running the code."""
    report = f"\nimport sys; print('loaded:', *(m for m in {HEAVY} if m in sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code + report], capture_output=True, text=True, check=True
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("loaded:"))
    return line.split()[1:]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import gqc", id="import gqc"),
        pytest.param(
            "from gqc.passes import PASSES\nfor load in PASSES.values(): load()", id="every pass"
        ),
        pytest.param(
            "from gqc.dialects.universe import UNIVERSE\n"
            "for load in UNIVERSE.all_dialects.values(): load()",
            id="every dialect",
        ),
        pytest.param(
            "from gqc.tools.gqc_opt import GqcOptMain\n"
            "import io, sys; sys.stdin = io.TextIOWrapper(io.BytesIO(b'builtin.module {}'))\n"
            "GqcOptMain(args=[]).run()",
            id="gqc-opt on an empty module",
        ),
    ],
)
def test_nothing_heavy_is_imported(code: str) -> None:
    assert heavy_modules_after(code) == []


def test_the_probe_sees_a_heavy_import() -> None:
    assert heavy_modules_after("import llvmlite") == ["llvmlite"]


def seconds(command: list[str], text: str = "") -> float:
    start = time.perf_counter()
    subprocess.run(command, input=text, text=True, capture_output=True, check=True)
    return time.perf_counter() - start


def test_gqc_opt_starts_at_once() -> None:
    """Best of three under half a second of a quiet machine; twice that allowed on a busy one."""
    command = [str(SCRIPTS / "gqc-opt")]
    assert min(seconds(command, "builtin.module {}") for _ in range(3)) < 1.0
