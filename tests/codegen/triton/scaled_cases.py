"""Printed native matmuls in Triton's interpreter; run by test_scaled_matmul.py.

The interpreter must be chosen before Triton is imported.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch

from gqc.codegen.triton import load
from gqc.codegen.triton.interpreter import interpreting
from gqc.native import NATIVE
from gqc.targets import Tiling

assert interpreting(), "run through test_scaled_matmul.py"

spec = importlib.util.spec_from_file_location("scaled", Path(__file__).with_name("scaled.py"))
assert spec is not None and spec.loader is not None
scaled = importlib.util.module_from_spec(spec)
spec.loader.exec_module(scaled)

SMALL = {
    "linear": Tiling(-1, 16, 32, 64),
    "swizzle_32_4_4": Tiling(-1, 128, 128, 128),
    "shuffle_32_8": Tiling(-1, 32, 64, 256),
}
KEYS = [key for key in NATIVE if key[0] != "sm_103"]  # prints what sm_100 does


@pytest.mark.parametrize("key", KEYS, ids="-".join)
def test_every_product(key: tuple[str, str, str, str]) -> None:
    m, n, k = 5, 37, 160
    x, w = (scaled.random_operand(e, key[3], r, k) for e, r in ((key[1], m), (key[2], n)))
    kernel = scaled.build_scaled(key, n, k, SMALL[NATIVE[key].scales], y="f32", bias=True)
    arrays, bias = scaled.arrays_of(key, x, w, torch.float32, bias=True)
    load(kernel)(*arrays)
    assert scaled.excess(arrays[-1], x, w, bias) <= 1
