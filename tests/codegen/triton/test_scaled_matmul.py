"""Native block-scaled matmuls: the numerics of every product, and what compilers make of it."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from gqc.codegen.triton import check, compile_many, compile_offline, emit
from gqc.dialects.interpret import interpreter
from gqc.dialects.tile_interpreter import run_kernel
from gqc.native import NATIVE
from gqc.targets import Tiling

TRITON36 = os.environ.get("GQC_TRITON36_PYTHON")


def sibling(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


scaled = sibling("scaled")
SMALL = {
    "linear": Tiling(-1, 16, 32, 64),
    "swizzle_32_4_4": Tiling(-1, 128, 128, 128),
    "shuffle_32_8": Tiling(-1, 32, 64, 256),
}


@pytest.mark.parametrize("key", NATIVE, ids="-".join)
def test_every_product_is_exact_but_for_sums(key: tuple[str, str, str, str]) -> None:
    """Rows and columns that do not fill a tile, and a K that ends within a step."""
    m, n, k = 5, 37, 160
    x, w = (scaled.random_operand(e, key[3], r, k) for e, r in ((key[1], m), (key[2], n)))
    kernel = scaled.build_scaled(key, n, k, SMALL[NATIVE[key].scales], y="f32", bias=True)
    kernel.verify()
    arrays, bias = scaled.arrays_of(key, x, w, torch.float32, bias=True)
    run_kernel(interpreter(ModuleOp([]), {}), kernel, arrays)
    assert scaled.excess(arrays[-1], x, w, bias) <= 1


def test_interpreted_cases_pass() -> None:
    cases = Path(__file__).with_name("scaled_cases.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider", str(cases)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


ALLOWED = "128-bit loads: w by 64 bits"
"""Of FP4 codes that sm_120 widens."""


def gated(python: str, start: int) -> list[str]:
    """Problems of every 23rd row of the table, each with one of its tilings in turn."""
    jobs, rows = [], []
    for i, (key, row) in enumerate([*NATIVE.items()][start::23]):
        tiling = row.tilings[i % len(row.tilings)]
        jobs.append((scaled.build_scaled(key, 4096, 4096, tiling, bias=True), key[0]))
        rows.append(row)
    problems = []
    for (_, target), row, built in zip(jobs, rows, compile_many(jobs, python), strict=True):
        names = built.matrix_instructions
        if not names or not all(name.startswith(row.instruction) for name in names):
            problems.append(f"{target}: {names}, not {row.instruction}")
        problems += [f"{target}: {p}" for p in check(built) if not p.startswith(ALLOWED)]
        if row.scales == "swizzle_32_4_4" and (built.ptx or "").count("tcgen05.cp") < 2:
            problems.append(f"{target}: scales do not arrive by tcgen05.cp")
    return problems


def test_native_kernels_pass_the_gates() -> None:
    assert gated(sys.executable, 0) == []


@pytest.mark.skipif(
    not TRITON36, reason="GQC_TRITON36_PYTHON names no Python with Triton 3.6 (make test sets it)"
)
def test_native_kernels_pass_the_gates_with_triton_3_6() -> None:
    assert TRITON36 is not None
    assert gated(TRITON36, 21) == []


def test_arrays_whose_pitch_no_descriptor_holds_are_copied_by_pointers() -> None:
    key = ("sm_100", "f4E2M1FN", "f4E2M1FN", "f8E4M3FN")
    kernel = scaled.build_scaled(key, 260, 528, NATIVE[key].tilings[-1])
    described = set(re.findall(r"from_tensor\((\w+),", emit(kernel)))
    assert described == {"x_scale", "scale"}
    assert check(compile_offline(kernel, "sm_100")) == []
