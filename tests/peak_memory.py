"""The most memory that a process has held, for scripts that tests run as processes."""

from __future__ import annotations

import re
from pathlib import Path


def peak_memory() -> int:
    """Most resident bytes since the program began.

    What getrusage tells begins at what the process that started this one held.
    """
    status = Path("/proc/self/status").read_text()
    (kib,) = re.findall(r"VmHWM:\s+(\d+) kB", status)
    return int(kib) * 1024
