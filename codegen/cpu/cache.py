"""A cache of object code on disk, by content.

One file for each key: a header, the SHA-256 of the key and of the code, then the code. A file that
is truncated, damaged, or another key's does not match its header and is as good as absent.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

from gqc.cache_folder import root

MAGIC = b"gqc object 1\n"
DIGEST = hashlib.sha256().digest_size


def folder() -> Path:
    """`$GQC_CACHE/kernels`, or `~/.cache/gqc/kernels`; see `gqc.cache_folder`."""
    return root() / "kernels"


def path_of(key: bytes) -> Path:
    """Where the code of a key lies; the key is all that the code depends on."""
    return folder() / f"{hashlib.sha256(key).hexdigest()}.o"


def header(key: bytes, code: bytes) -> bytes:
    return MAGIC + hashlib.sha256(key).digest() + hashlib.sha256(code).digest()


def read(key: bytes) -> bytes | None:
    """The code stored under a key, or None if there is none that can be trusted."""
    try:
        content = path_of(key).read_bytes()
    except OSError:
        return None
    length = len(MAGIC) + 2 * DIGEST
    code = content[length:]
    return code if code and content[:length] == header(key, code) else None


def write(key: bytes, code: bytes) -> None:
    """Store the code of a key. The file appears whole or not at all; where the disk takes no file,
    nothing is stored, which costs the next process a compilation."""
    with contextlib.suppress(OSError):
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder(), delete=False) as file:
            try:
                file.write(header(key, code) + code)
                file.close()
                os.replace(file.name, path_of(key))
            except OSError:
                os.unlink(file.name)
                raise
