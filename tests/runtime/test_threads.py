"""Threads and processes that call a compiled model at once, before its kernels are compiled."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import gqc
from gqc.codegen import cpu
from gqc.codegen.cpu import cache, jit
from gqc.codegen.cpu.isa import host
from gqc.dialects.text import parse_ir
from gqc.dialects.tile import KernelOp
from gqc.passes.kernel_builder import KernelBuilder
from gqc.runtime import attention, ops

THREADS = 8
forks = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture(autouse=True)
def cold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing is compiled yet, on the disk or in the process; and threads take turns often."""
    monkeypatch.setenv("GQC_CACHE", str(tmp_path))
    monkeypatch.setattr(jit, "linked", {})
    monkeypatch.setattr(ops, "LAUNCHES", {})
    interval, threads = sys.getswitchinterval(), torch.get_num_threads()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(interval)
    torch.set_num_threads(threads)


def compiled(scheme: str, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(256, 192), nn.GELU(), nn.Linear(192, 64)).eval()
    return gqc.compile(model, scheme=scheme, target="cpu")


def at_once(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """What threads return that all start together. Raises what one of them raised."""
    results: list[Any] = [None] * count
    errors: list[BaseException] = []
    start = threading.Barrier(count)

    def run(number: int) -> None:
        try:
            start.wait()
            results[number] = work(number)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


@pytest.mark.parametrize("scheme", ["int8_g32", "w4a8_g32"])
def test_first_calls_compile_each_kernel_once(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step is slow here, so that a thread that does not wait comes in between."""
    made: dict[str, list[bytes]] = {"object_code": [], "link": []}

    def slow(name: str, key: int) -> None:
        step = getattr(jit, name)

        def run(*args: Any) -> Any:
            made[name].append(args[key])
            time.sleep(0.02)
            return step(*args)

        monkeypatch.setattr(jit, name, run)

    slow("object_code", 2)
    slow("link", 1)
    model, x = compiled(scheme), torch.randn(4, 256)
    found = at_once(lambda _: model(x))
    assert all(torch.equal(y, found[0]) for y in found) and torch.equal(model(x), found[0])
    assert made["object_code"] and len(set(made["object_code"])) == len(made["object_code"])
    assert len(set(made["link"])) == len(made["link"]) == len(jit.linked)
    assert gc.isenabled()


def test_threads_of_several_models_and_buckets() -> None:
    """Each thread has its own number of rows, which take turns; kernels are shared by models."""
    models = [compiled("int4_g32", seed) for seed in (0, 1)]
    inputs = [torch.randn(rows, 256) for rows in (1, 2, 4, 17)]

    def work(number: int) -> list[torch.Tensor]:
        return [models[(number + n) % 2](inputs[(number + n) % 4]) for n in range(8)]

    found = at_once(work)
    for number, results in enumerate(found):
        for y, again in zip(results, work(number), strict=True):
            assert torch.equal(y, again)


def test_the_number_of_threads_changes_in_between() -> None:
    model, x = compiled("int4_g32"), torch.randn(64, 256)
    expected = model(x)

    def work(number: int) -> bool:
        same = True
        for turn in range(12):
            torch.set_num_threads(1 + (number + turn) % 3)
            same = same and torch.equal(model(x), expected)
        return same

    assert all(at_once(work, 4))


def test_models_are_compiled_by_several_threads() -> None:
    """By their layers and whole."""
    torch.manual_seed(0)
    models = [nn.Sequential(nn.Linear(64, 48)).eval() for _ in range(2)] * 2
    x = torch.randn(3, 64)

    def work(number: int) -> torch.Tensor:
        own = nn.Sequential(nn.Linear(64, 48)).eval()
        own.load_state_dict(models[number % 2].state_dict())
        options: Any = {"scheme": "w8a8_g32", "target": "cpu"}
        return gqc.compile(own, x if number < 2 else None, **options)(x)

    found = at_once(work, 4)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])


def test_kernels_are_built_by_several_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention's are, when it is first called."""
    constant = KernelBuilder.constant

    def slow(self: KernelBuilder, value: int) -> Any:
        time.sleep(0.001)
        return constant(self, value)

    monkeypatch.setattr(KernelBuilder, "constant", slow)
    q, cached = torch.randn(1, 2, 1, 32), torch.randn(1, 2, 128, 32)
    attention.launcher.cache_clear()
    found = at_once(lambda _: torch.ops.gqc.attend(q, cached, cached, 0.5))
    assert all(torch.equal(y, found[0]) for y in found)


KERNEL = """
tile.kernel @f(%x: memref<?x64xf32>, %y: memref<?x64xf32>) tile<1, 64> {
  %c0 = arith.constant 0 : index
  %m = tile.program_id 0
  %t = tile.load %x[%m, %c0] : memref<?x64xf32> -> vector<1x64xf32>
  tile.store %t, %y[%m, %c0] : vector<1x64xf32>, memref<?x64xf32>
}
"""


def test_code_lives_as_long_as_what_calls_it() -> None:
    kernel = parse_ir(KERNEL).body.block.first_op
    assert isinstance(kernel, KernelOp)
    run = cpu.load(kernel, host().name)
    (code,) = map(weakref.ref, jit.linked.values())
    jit.linked.clear()
    gc.collect()
    assert code() is not None
    x, y = torch.randn(3, 64), torch.empty(3, 64)
    run(x, y)
    assert torch.equal(x, y)
    del run
    gc.collect()
    assert code() is None


# Processes


def forked(work: Callable[[], bool], seconds: int = 60) -> int:
    """A child that ends with status 0 if `work` gives True, and with a signal after a while."""
    pid = os.fork()
    if pid:
        return pid
    signal.alarm(seconds)
    status = 1
    try:
        status = 0 if work() else 2
    finally:
        os._exit(status)


def ended_well(pid: int) -> bool:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_fork_after_use() -> None:
    """Of several threads, which the child has not: what was called, and what was not."""
    torch.set_num_threads(2)
    model, other = compiled("int4_g32"), compiled("w8a8_g32")
    x = torch.randn(64, 256)
    expected = model(x)

    def work() -> bool:
        return torch.equal(model(x), expected) and bool(other(x).isfinite().all())

    assert ended_well(forked(work))
    assert torch.get_num_threads() == 2 and torch.equal(model(x), expected)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_fork_while_a_thread_compiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child would wait forever for a lock that nobody holds there."""
    model, x, within = compiled("int8_g32"), torch.randn(4, 256), threading.Event()
    link = jit.link

    def slow(*args: Any) -> Any:
        within.set()
        time.sleep(0.1)
        return link(*args)

    monkeypatch.setattr(jit, "link", slow)
    thread = threading.Thread(target=lambda: model(x))
    thread.start()
    within.wait()
    pid = forked(lambda: bool(model(x).isfinite().all()), seconds=20)
    thread.join()
    assert ended_well(pid)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_processes_on_one_cold_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    """They start together; both store the code, of which one stays, whole."""
    model, x = compiled("int8_g32"), torch.randn(4, 256)
    ready, go = os.pipe()

    def work() -> bool:
        os.close(go)
        os.read(ready, 1)  # ends when all have closed the other end
        return bool(model(x).isfinite().all())

    children = [forked(work) for _ in range(3)]
    os.close(go)
    assert all([ended_well(child) for child in children])
    os.close(ready)
    stored = sorted(cache.folder().iterdir())
    assert stored and all(path.suffix == ".o" for path in stored)
    monkeypatch.setattr(jit, "optimized", None)  # a compilation would fail
    model(x)


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_stack_of_one_mib() -> None:
    """What a thread may have: for first calls, panels with the most sums, and the most scores."""
    torch.manual_seed(0)
    model = gqc.compile(nn.Linear(8192, 64), scheme="int4_g32", target="cpu")
    x, q = torch.randn(260, 8192), torch.randn(1, 1, 1, 16)
    cached = torch.randn(1, 1, attention.MOST_ROOM, 16)
    results: list[torch.Tensor] = []

    def run() -> None:
        results.append(model(x))
        results.append(torch.ops.gqc.attend(q, cached, cached, 0.5))

    def work() -> bool:
        threading.stack_size(1 << 20)
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        return len(results) == 2

    attention.launcher.cache_clear()
    assert attention.kernel_of(q, cached, cached, 0.5) is not None
    assert ended_well(forked(work))


class Rows(Dataset):
    """Results of a compiled model, computed where they are asked for."""

    def __init__(self, model: Any, x: torch.Tensor) -> None:
        self.model, self.x = model, x

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> torch.Tensor:
        with torch.no_grad():  # a loader stacks what has no gradients
            return self.model(self.x[index : index + 1])[0].clone()


@forks
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
@pytest.mark.parametrize("used", [False, True])
def test_workers_of_a_data_loader(used: bool) -> None:
    """Kernels are first called in them, or were before."""
    torch.set_num_threads(2)
    model, x = compiled("w4a8_g32"), torch.randn(4, 256)
    if used:
        model(x)
    loader = DataLoader(Rows(model, x), batch_size=2, num_workers=2, multiprocessing_context="fork")
    found = torch.cat(list(loader))
    assert torch.equal(found, torch.cat([model(row[None]) for row in x]))
