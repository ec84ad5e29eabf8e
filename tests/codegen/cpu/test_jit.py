"""Kernels as functions: threads, bounds, the cache on disk, other machines."""

from __future__ import annotations

import ctypes
import re
import subprocess
import sys
import threading

import pytest
import torch
from tiers import RUN

from gqc.codegen import cpu
from gqc.codegen.cpu import cache, jit
from gqc.codegen.cpu.isa import ISAS, resolve
from gqc.errors import GqcError

INT4 = "1x32 : f16 : ui4, zero = f16, zero_mode = rescale"


def run_with(threads: int, function, *arguments) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        function(*arguments)
    finally:
        torch.set_num_threads(before)


# Threads


@pytest.mark.parametrize("rows", [1, 7])
def test_threads_do_not_change_a_bit(linear, rows):
    layer = linear(640, 512, INT4)
    *inputs, one = layer.arguments(rows)
    many = [one.clone() for _ in range(3)]
    run = cpu.load(layer.kernel("portable", rows))
    run_with(1, run, *inputs, one)
    assert not one.isnan().any()
    for threads, y in zip((2, 3, 16), many, strict=True):
        run_with(threads, run, *inputs, y)
        assert torch.equal(one, y)


def test_the_pool_is_the_one_torch_sets():
    """Started as a kernel starts it, with no number of threads, a worker runs on torch's number."""
    seen: set[int] = set()

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def worker(_: int) -> None:
        seen.add(threading.get_ident())

    parallel = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    )
    start = parallel(jit.openmp()["GOMP_parallel"])
    for threads in (1, 2):
        seen.clear()
        run_with(threads, start, ctypes.cast(worker, ctypes.c_void_p), None, 0, 0)
        assert len(seen) == threads


def test_inside_a_parallel_region_and_on_another_thread(linear):
    layer = linear(640, 512, INT4)
    *inputs, y = layer.arguments(3)
    run = cpu.load(layer.kernel("portable", 3))
    run(*inputs, y)
    results = []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def worker(_: int) -> None:
        mine = torch.zeros_like(y)
        run(*inputs, mine)
        results.append(mine)

    parallel = ctypes.CFUNCTYPE(
        None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint
    )
    start = parallel(jit.openmp()["GOMP_parallel"])
    run_with(2, start, ctypes.cast(worker, ctypes.c_void_p), None, 2, 0)
    thread = threading.Thread(target=worker, args=(0,))
    thread.start()
    thread.join()
    assert len(results) == 3 and all(torch.equal(y, mine) for mine in results)


# Bounds


@pytest.mark.parametrize("isa", RUN)
@pytest.mark.parametrize(
    ("n", "k", "rows", "format"),
    [
        (65, 64, 3, INT4),
        (17, 33, 5, "1x? : f16 : ui4"),
        (100, 47, 1, "1x? : f32 : si3"),
        (33, 64, 3, "1x32 : f8E8M0FNU : f6E2M3FN"),
        (31, 129, 18, "1x? : bf16 : ui5, zero = bf16, zero_mode = original"),
    ],
)
def test_touches_nothing_beyond_its_arrays(linear, isa, n, k, rows, format):
    """Pages there may not be touched, in all tests here; K, N and M leave tails."""
    for activation in ("f32", "bf16")[:: 1 if rows == 3 else -1]:
        linear(n, k, format, activation, bias=True).check(isa, rows)


def test_infinite_and_nan_inputs_stay_in_their_row(linear):
    layer = linear(64, 64, "1x32 : f16 : si4", "bf16")
    for isa in ("portable", "neon", resolve("host").name):
        x, *parts, y = layer.arguments(3)
        x[1, 5], x[2, 7] = float("nan"), float("inf")
        cpu.load(layer.kernel(isa, 3), isa)(x, *parts, y)
        assert y[0].isfinite().all() and y[1].isnan().all() and not y[2].isfinite().any()


# Calls that are wrong


def test_wrong_calls_are_refused(linear):
    layer = linear(64, 64, INT4)
    *inputs, y = layer.arguments(3)
    run = cpu.load(layer.kernel("portable", 3))
    with pytest.raises(
        ValueError, match=r"matmul takes 5 tensors, x \[M, 64\] first and y \[M, 64\]"
    ):
        run(*inputs, y[:2])
    with pytest.raises(ValueError, match="takes 5 tensors"):
        run(*inputs[1:], y)


def test_unknown_tier_is_refused(linear):
    with pytest.raises(
        GqcError, match="no CPU tier is called 'avx10': use host, amx, avx512bf16, cooperlake"
    ):
        cpu.load(linear(64, 64, INT4).kernel("portable", 1), "avx10")


def test_lanes_that_fill_no_vector_are_refused(linear):
    from gqc.targets import Tiling

    kernel = linear(64, 64, INT4).kernel("avx512", 1, Tiling(-1, 1, 8, 0))
    with pytest.raises(GqcError, match="8 columns does not fill vectors of 16 lanes"):
        cpu.emit(kernel, "avx512")


def test_no_rows_is_no_work(linear):
    layer = linear(64, 64, INT4)
    cpu.load(layer.kernel("portable", 1))(*layer.arguments(0))


# The cache


def kernel_and_key(linear, n: int):
    kernel = linear(n, 64, INT4).kernel("portable", 1)
    return kernel, jit.cache_key(kernel, ISAS["portable"])


def compiled(kernel, key: bytes) -> bytes:
    return jit.object_code(kernel, ISAS["portable"], key)


def test_object_code_is_stored_and_read_back(linear, own_cache, monkeypatch):
    kernel, key = kernel_and_key(linear, 61)
    code = compiled(kernel, key)
    assert cache.read(key) == code and cache.path_of(key).is_relative_to(own_cache)
    monkeypatch.setattr(jit, "optimized", None)  # a second compilation would fail
    assert compiled(kernel, key) == code
    assert not [f for f in cache.folder().iterdir() if f.suffix != ".o"]


@pytest.mark.parametrize(
    "damage", ["truncated", "garbage", "empty", "foreign", "flipped", "headless"]
)
def test_damaged_entry_is_rebuilt(linear, damage):
    kernel, key = kernel_and_key(linear, 62)
    code = compiled(kernel, key)
    path = cache.path_of(key)
    whole = path.read_bytes()
    other = b"\x7fELF of another architecture"
    path.write_bytes(
        {
            "truncated": whole[: len(whole) // 2],
            "garbage": b"garbage" * 1000,
            "empty": b"",
            "foreign": cache.header(b"another machine's key", other) + other,
            "flipped": whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:],
            "headless": code,
        }[damage]
    )
    assert cache.read(key) is None
    assert compiled(kernel, key) == code and path.read_bytes() == whole


def test_key_names_all_that_code_depends_on(linear, monkeypatch):
    kernel, key = kernel_and_key(linear, 63)
    assert jit.cache_key(kernel, ISAS["avx2"]) != key
    assert kernel_and_key(linear, 64)[1] != key
    monkeypatch.setattr(jit.binding, "get_host_cpu_name", lambda: "another")
    assert jit.cache_key(kernel, ISAS["portable"]) != key


def test_unwritable_cache_costs_only_time(linear, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("GQC_CACHE", str(tmp_path / "file"))
    kernel, key = kernel_and_key(linear, 65)
    assert compiled(kernel, key) and cache.read(key) is None


# Code


def test_portable_code_compiles_for_arm(linear):
    for activation in ("f32", "bf16", "f16"):
        text = cpu.assembly(
            linear(100, 128, INT4, activation, bias=True).kernel("portable", 4), "aarch64"
        )
        assert "fmla\tv" in text and "bl\t__" not in text


def test_bf16_dot_is_one_instruction(linear):
    text = cpu.assembly(linear(64, 128, INT4, "bf16").kernel("avx512bf16", 4), "avx512bf16")
    assert text.count("vdpbf16ps") >= 8 * 16 and text.count("vpermw") >= 8 * 4


@pytest.mark.parametrize(("isa", "look_up"), [("avx512bf16", True), ("cooperlake", False)])
def test_bytes_are_looked_up_where_the_cpu_can(linear, isa, look_up):
    kernel = linear(64, 64, "1x32 : f8E8M0FNU : f8E4M3FN", "bf16").kernel(isa, 4)
    text = cpu.assembly(kernel, isa)
    assert bool(re.search(r"vperm\w*b\t", text)) == look_up and "vdpbf16ps" in text


def test_lower_tiers_use_no_higher_instructions(linear):
    for isa in ("avx2", "portable"):
        text = cpu.assembly(linear(64, 64, INT4, "bf16").kernel(isa, 4), isa)
        assert "%zmm" not in text and "%k1" not in text
    assert "%ymm" not in cpu.assembly(linear(64, 64, INT4).kernel("portable", 1), "portable")
    text = cpu.assembly(linear(64, 64, INT4, "bf16").kernel("avx512", 4), "avx512")
    assert "%zmm" in text and "vdpbf16ps" not in text


def test_import_is_light():
    code = "import sys, gqc.codegen.cpu; print(*{'torch', 'llvmlite'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
