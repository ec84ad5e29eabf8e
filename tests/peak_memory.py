"""The most memory that a process has held, for scripts that tests run as processes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

LARGE = 1 << 20
"""Bytes from which on a tensor has pages of its own."""


def peak_memory() -> int:
    """Most resident bytes since the program began.

    What getrusage tells begins at what the process that started this one held.
    """
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) * 1024


def numbers_of(script: str, *arguments: str | Path) -> list[int]:
    """The numbers that a script prints, of memory that it holds.

    The allocator keeps what is freed, in pieces that the next tensor may not fit: up to twice what
    is held, and another amount each time. The script's gives large tensors pages of their own,
    which go back.
    """
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "MALLOC_MMAP_THRESHOLD_": str(LARGE)}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return [int(number) for number in done.stdout.split()]
