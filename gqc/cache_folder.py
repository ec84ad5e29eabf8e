"""Where gqc keeps what it may make again: `$GQC_CACHE`, `~/.cache/gqc`, or a temporary folder."""

from __future__ import annotations

import os
import stat
import tempfile
import warnings
from contextlib import suppress
from functools import cache
from pathlib import Path


def root() -> Path:
    """The folder of all caches. Where there is no home, or none that can be written to, it is a
    temporary folder of this user alone, with a warning."""
    if given := os.environ.get("GQC_CACHE"):
        return Path(given)
    return under_home(os.environ.get("HOME"))


@cache
def under_home(home: str | None) -> Path:
    """`.cache/gqc` of a home (None: what the system has for the user), decided once a process."""
    try:
        folder = Path.home() / ".cache" / "gqc"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:  # no such user, no such folder
        folder = temporary()
        warnings.warn(
            f"gqc keeps its cache in {folder}, for there is no home to keep it in ({error}): set "
            "GQC_CACHE to a folder that lasts",
            stacklevel=2,
        )
    return folder


def temporary() -> Path:
    """A temporary folder that nobody else can write to, for code that lies there is run: the same
    for all processes of the user, or else one of this process."""
    if hasattr(os, "getuid"):
        folder = Path(tempfile.gettempdir(), f"gqc-{os.getuid()}")
        with suppress(OSError):
            folder.mkdir(mode=0o700, exist_ok=True)
            if is_private(folder):
                return folder
    return Path(tempfile.mkdtemp(prefix="gqc-"))


def is_private(folder: Path) -> bool:
    """Whether it is a folder, not a link, of this user, and closed to all others."""
    found = folder.lstat()
    is_mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
    return is_mine and not found.st_mode & 0o077
