"""Locks for what is made once, on first calls, or by what runs in one thread at a time.

A server's first requests come from several threads at once. The kernels they need are parsed,
compiled, linked and loaded by the thread that comes first, while the others wait. Later calls take
no lock.
"""

from __future__ import annotations

import os
import threading


def fork_safe_lock() -> threading.RLock:
    """A lock that no forked process finds taken: a fork waits until no other thread holds it."""
    lock = threading.RLock()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(
            before=lock.acquire, after_in_parent=lock.release, after_in_child=lock.release
        )
    return lock


LOCK = fork_safe_lock()
"""Held while a kernel is built, compiled, linked or loaded."""

CAPTURE = fork_safe_lock()
"""Held while torch.export traces a model, which it does in one thread of a process at a time."""
