"""Whole layers of every scheme on every tier between guard pages; and that these guard."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Callable
from typing import Any

import pytest
import torch
from guard_pages import AVAILABLE, PAGE, guarded
from tiers import RUN
from torch import Tensor, nn

import gqc

SCHEMES = (
    "int4_g32",
    "int3_g16_sym",
    "int8_row_sym",
    "w6a16_mxfp6",
    "w4a16_nvfp4",
    "w4a8_g32",
    "w8a8_g64_asym",
    "mxfp8",
    "nvfp4",
)
ROWS = ((1,), (2,), (3, 5, 8, 15), (17, 18, 19, 21, 33))
"""Of a bucket each, whose tiles they fill or not."""
TYPES = (torch.float32, torch.bfloat16, torch.float16)


def layers(k: int, n: int, dtype: torch.dtype) -> Any:
    """A layer whose input is computed by what quantizers of activations take in, with an
    epilogue."""
    torch.manual_seed(n)
    model = nn.Sequential(nn.RMSNorm(k), nn.Linear(k, n), nn.SiLU())
    return model.to(dtype).eval()


PAIRS = [(isa, s) for i, isa in enumerate(RUN) for n, s in enumerate(SCHEMES) if (n + i) % 2 == 0]
"""Every other one; formats by themselves are tested on each tier, between guard pages too."""


@pytest.mark.parametrize(("isa", "scheme"), [pair for pair in PAIRS if pair[0] != "neon"])
def test_a_layer(isa: str, scheme: str) -> None:
    """Buckets, types, and columns that leave tails take turns. Rows by themselves give what they
    give together, but for the order of sums."""
    turn = SCHEMES.index(scheme) + 2 * RUN.index(isa)
    k, n = 192, (65, 31, 33, 100)[turn // 2 % 4]
    if scheme == "int8_row_sym":
        k = (47, 33, 130, 65)[turn % 4]  # blocks of a row leave tails of K
    model = layers(k, n, TYPES[turn % 3])
    x = torch.randn(33, k).to(TYPES[turn % 3])
    compiled = gqc.compile(model, x, scheme=scheme, target=f"cpu_{isa}")
    for rows in ROWS[turn % 4]:
        y = compiled(x[:rows])
        assert y.shape == (rows, n) and y.isfinite().all()


# What guards


def ends_by(work: Callable[[], None]) -> int:
    """The signal that ends a process that does this; 0 if it ends by itself."""
    pid = os.fork()
    if not pid:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
            work()
        finally:
            os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.skipif(not AVAILABLE, reason="this system has no such pages")
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize(("side", "beyond"), [("end", 0), ("start", -1)])
def test_a_byte_beyond_ends_the_process(side: str, beyond: int) -> None:
    def reads(*tensors: Tensor) -> None:
        x = tensors[0]
        ctypes.string_at(x.data_ptr() + (x.nbytes if side == "end" else 0) + beyond, 1)

    assert ends_by(lambda: guarded(reads, [side])(torch.ones(3))) == signal.SIGSEGV


@pytest.mark.skipif(not AVAILABLE, reason="this system has no such pages")
def test_what_is_written_beside_an_array_is_seen() -> None:
    def writes(x: Tensor) -> None:
        ctypes.memset(x.data_ptr() - 1, 0, 1)

    with pytest.raises(AssertionError, match="wrote beyond an array"):
        guarded(writes, ["end"])(torch.ones(3))


@pytest.mark.skipif(not AVAILABLE, reason="this system has no such pages")
def test_results_are_copied_back_and_compared() -> None:
    x, y = torch.randn(3, 5), torch.zeros(3, 5, dtype=torch.float64)
    guarded(lambda a, b: b.copy_(a))(x, y)
    assert torch.equal(x.double(), y)
    with pytest.raises(AssertionError, match="depends on where arrays lie"):
        guarded(lambda a: a.fill_(a.data_ptr() % PAGE))(x)
