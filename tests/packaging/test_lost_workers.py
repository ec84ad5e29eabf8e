"""A run of tests that loses workers, by a crash or by a test that hangs, ends with an error."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

CONFIGURATION = Path(__file__).parents[2] / "pyproject.toml"
FILES = {
    "crash": "import ctypes\ndef test_that_crashes(): ctypes.string_at(0)\n",
    "hang": "import threading\ndef test_that_hangs(): threading.Event().wait()\n",
    "pass": "def test_that_passes(): pass\n",
}


def test_the_run_ends(tmp_path: Path) -> None:
    """By the options of this project, but for the time after which a test hangs."""
    for name, text in FILES.items():
        (tmp_path / f"test_{name}.py").write_text(text)
    options = ["-n", "3", "--dist", "loadfile", "-o", "faulthandler_timeout=3"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-c", CONFIGURATION, *options, tmp_path],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert "2 failed, 1 passed" in done.stdout, done.stdout
    for name in ("crash", "hang"):
        assert f"test_{name}.py::test_that_" in done.stdout
