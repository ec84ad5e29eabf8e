"""Arrays between pages that may not be touched: a kernel that reaches beyond one ends the process.

Each call runs twice: on copies that end where such a page begins, and on copies that begin where
one ends. Bytes of a copy's pages that are not its own must keep what they hold, and both calls must
give the same.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

PAGE = mmap.PAGESIZE
SIDES = ("end", "start")
FILL = 0xA5
AVAILABLE = sys.platform == "linux"
"""mprotect as Linux has it."""


class Copy:
    """A copy of a contiguous tensor that lies at one side of its pages, beyond which no byte may be
    touched."""

    def __init__(self, tensor: Tensor, side: str):
        self.size = max(1, -(-tensor.nbytes // PAGE)) * PAGE
        self.memory = mmap.mmap(-1, self.size + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.memory))
        for page in (start, start + PAGE + self.size):
            assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(page), PAGE, 0) == 0
        self.pages = torch.frombuffer(self.memory, dtype=torch.uint8, count=self.size, offset=PAGE)
        self.pages.fill_(FILL)
        first = self.size - tensor.nbytes if side == "end" else 0
        self.own = slice(first, first + tensor.nbytes)
        self.pages[self.own] = as_bytes(tensor)
        flat = self.pages[self.own]
        # From its own bytes on, for torch wants offsets of storages in whole elements.
        if tensor.nbytes:
            flat = torch.frombuffer(
                self.memory, dtype=torch.uint8, count=tensor.nbytes, offset=PAGE + first
            )
        self.tensor = flat.view(tensor.dtype).view(tensor.shape)

    def check(self) -> None:
        """Raise AssertionError if bytes beside the tensor were written."""
        rest = (self.pages[: self.own.start], self.pages[self.own.stop :])
        assert all((part == FILL).all() for part in rest), "a kernel wrote beyond an array"


def as_bytes(tensor: Tensor) -> Tensor:
    return tensor.reshape(-1).view(torch.uint8)


def guarded(run: Callable[..., None], sides: Sequence[str] = SIDES) -> Callable[..., None]:
    """A kernel that is called on copies of its tensors, at each side in turn; what it made of the
    last ones is copied back. Tensors that are not contiguous are given as they are."""

    def walled(*tensors: Tensor) -> None:
        results: list[list[Tensor]] = []
        for side in sides:
            copies = [Copy(t, side) if t.is_contiguous() else None for t in tensors]
            given = [t if c is None else c.tensor for t, c in zip(tensors, copies, strict=True)]
            run(*given)
            for copy in filter(None, copies):
                copy.check()
            results.append([as_bytes(c.tensor) for c in copies if c is not None])
        first, last = results[0], results[-1]
        assert all(map(torch.equal, first, last)), "a result depends on where arrays lie"
        contiguous = [t for t in tensors if t.is_contiguous()]
        for tensor, found in zip(contiguous, last, strict=True):
            as_bytes(tensor).copy_(found)

    return walled if AVAILABLE else run
