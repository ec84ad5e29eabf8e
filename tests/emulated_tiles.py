"""AMX by numpy: what its instructions do, for kernels on a CPU that has none.

Intel 64 and IA-32 Architectures Software Developer's Manual, volume 2, with its order of sums; but
subnormals are not flushed to zero. What would be a fault there is noted here, for a function that C
calls cannot raise.
"""

from __future__ import annotations

import ctypes
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

TILES, ROWS, BYTES = 8, 16, 64
I8, PTR, I64 = ctypes.c_int8, ctypes.c_void_p, ctypes.c_int64

SIGNATURES: dict[str, tuple[Any, ...]] = {
    "ldtilecfg": (PTR,),
    "tilerelease": (),
    "tilezero": (I8,),
    "tileloadd64": (I8, PTR, I64),
    "tilestored64": (I8, PTR, I64),
    "tdpbf16ps": (I8, I8, I8),
    "tdpbsud": (I8, I8, I8),
}


@dataclass
class Tiles:
    """The state of one thread, and how often each instruction ran."""

    rows: list[int] = field(default_factory=lambda: [0] * TILES)
    colsb: list[int] = field(default_factory=lambda: [0] * TILES)
    data: np.ndarray = field(default_factory=lambda: np.zeros((TILES, ROWS, BYTES), np.uint8))
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIGNATURES, 0))
    faults: list[str] = field(default_factory=list)

    def ldtilecfg(self, address: int) -> None:
        words = np.frombuffer(ctypes.string_at(address, 64), np.uint8)
        reserved = [*words[1:16], *words[32:48], *words[56:]]
        self.colsb = [int(n) for n in words[16:32].view(np.uint16)]
        self.rows = [int(n) for n in words[48:56]]
        self.data[:] = 0
        fits = max(self.rows) <= ROWS and max(self.colsb) <= BYTES
        self.check(words[0] == 1 and not any(reserved) and fits, "a configuration")

    def tilerelease(self) -> None:
        self.rows, self.colsb = [0] * TILES, [0] * TILES

    def tilezero(self, tile: int) -> None:
        self.check(self.rows[tile] and self.colsb[tile], f"tilezero {tile}")
        self.data[tile] = 0

    def tileloadd64(self, tile: int, address: int, stride: int) -> None:
        rows, colsb = self.rows[tile], self.colsb[tile]
        self.check(rows and colsb, f"tileloadd {tile}")
        self.data[tile] = 0
        for row in range(rows):
            line = ctypes.string_at(address + row * stride, colsb)
            self.data[tile, row, :colsb] = np.frombuffer(line, np.uint8)

    def tilestored64(self, tile: int, address: int, stride: int) -> None:
        rows, colsb = self.rows[tile], self.colsb[tile]
        self.check(rows and colsb, f"tilestored {tile}")
        for row in range(rows):
            line = self.data[tile, row, :colsb].tobytes()
            ctypes.memmove(address + row * stride, line, colsb)

    def tdpbf16ps(self, acc: int, a: int, b: int) -> None:
        x, w = (as_f32(self.data[tile]) for tile in (a, b))
        with np.errstate(all="ignore"):
            self.multiply(acc, a, b, x, w)

    def tdpbsud(self, acc: int, a: int, b: int) -> None:
        x, w = self.data[a].view(np.int8), self.data[b]
        self.multiply(acc, a, b, x.astype(np.int32), w.astype(np.int32))

    def multiply(self, acc: int, a: int, b: int, x: np.ndarray, w: np.ndarray) -> None:
        """acc += x · w, each row of which holds as many rows of K as fill 32 bits; their sums are
        added last."""
        same = self.rows[acc] == self.rows[a] and self.colsb[acc] == self.colsb[b]
        depth, together = self.colsb[a] // 4, x.shape[1] // ROWS
        self.check(same and depth == self.rows[b] and len({acc, a, b}) == 3, "a product")
        sums = np.zeros((together, ROWS, ROWS), x.dtype)
        for k in range(depth * together):
            part = k % together
            sums[part] += x[:, k, None] * w[k // together, part::together]
        self.data[acc].view(x.dtype)[:] += sums.sum(0, dtype=x.dtype)

    def check(self, holds: object, what: str) -> None:
        if not holds:
            self.faults.append(f"{what}: rows {self.rows}, bytes {self.colsb}")

    def instruction(self, name: str) -> Callable[..., None]:
        def run(*args: int) -> None:
            self.counts[name] += 1
            getattr(self, name)(*args)

        return ctypes.CFUNCTYPE(None, *SIGNATURES[name])(run)


def as_f32(tile: np.ndarray) -> np.ndarray:
    """The bf16 of a tile's rows."""
    return (tile.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def with_calls(text: str) -> str:
    """LLVM IR with a call of a function in place of each instruction."""
    return re.sub(rf"llvm\.x86\.({'|'.join(SIGNATURES)})\b", r"emulated_\1", text)
