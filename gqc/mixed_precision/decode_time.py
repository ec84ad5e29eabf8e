"""How long a layer must take for one token, from what memory and multipliers can do at most."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from gqc.codegen.triton.machines import MACHINES
from gqc.dialects.gq import BlockScaledType

ACTIVATION_BYTES = 2
"""Of an element of a layer's input and output: 16-bit floats."""


@dataclass(frozen=True)
class Rates:
    """Of one machine: bytes/s that it reads from memory, operations/s (a multiply-add is two).

    source: where they are from.
    """

    bandwidth: float
    operations: float
    source: str

    def microseconds(self, type_: BlockScaledType, shape: Sequence[int]) -> float:
        """Least time of y = x·Wᵀ for one row x, W [N, K] of that type, every byte moved once.

        max(bytes / bandwidth, 2·N·K / operations), bytes those of codes, scales, zero points, x and
        y. It is the roofline of a layer whose weights come from memory. Left out are launches,
        caches that hold a small model, and what lies between the layers.
        """
        n, k = shape
        moved = n * k * type_.bits_per_element(shape) / 8 + (n + k) * ACTIVATION_BYTES
        return 1e6 * max(moved / self.bandwidth, 2 * n * k / self.operations)


def rates_of(target: str) -> Rates:
    """Of a GPU as its data sheet has them, `gqc.codegen.triton.machines`; of this CPU as measured,
    once a process, with torch's threads as they are then."""
    machine = MACHINES.get(target)
    if machine is None:
        return measured()
    tflops = machine.matrix["mma"].tflops
    return Rates(machine.bandwidth * 1e12, tflops * 1e12, f"data sheet of {machine.model}")


@cache
def measured() -> Rates:
    """This CPU: the best of several sums over 256 MB, and of products of 1024×1024 matrices."""
    data, matrix = torch.ones(64 << 20), torch.ones(1024, 1024)
    bandwidth = data.nbytes / best_time(lambda: data.sum())
    return Rates(bandwidth, 2 * 1024**3 / best_time(lambda: matrix @ matrix), "measured")


def best_time(call: Callable[[], Any], repeats: int = 5) -> float:
    """Seconds of the quickest of several calls."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return min(seconds)
