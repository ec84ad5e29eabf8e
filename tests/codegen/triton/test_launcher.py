"""Launching: which calls go through Triton's dispatch, and which use a kept compiled kernel."""

from __future__ import annotations

import contextlib
import inspect
import threading
import time
from collections.abc import Callable
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from gqc.codegen.triton.launcher import Launcher, import_source
from gqc.errors import GqcError


def array(rows: int, address: int = 0) -> Any:
    """As much of a CUDA tensor as a launcher looks at."""
    device = torch.device("cuda", 0)
    size, dtype = (rows, 64), torch.float16
    return SimpleNamespace(device=device, shape=size, dtype=dtype, data_ptr=lambda: address)


class Printed(ModuleType):
    """Stands for the module of a printed kernel, and for what Triton compiles of it."""

    def __init__(self) -> None:
        super().__init__("printed")
        self.SIGNATURE: dict[str, str] = {"x": "*fp16", "y": "*fp16", "M": "i32"}
        self.dispatched: list[tuple] = []
        self.direct: list[tuple] = []

    def launch(self, *tensors: Any) -> Printed:
        self.dispatched.append(tensors)
        return self

    def grid(self, rows: int) -> tuple[int, int, int]:
        return rows // 16, 1, 1

    def __getitem__(self, grid: tuple) -> Callable[..., None]:
        return lambda *args: self.direct.append((grid, args))


@pytest.fixture
def printed(monkeypatch) -> Printed:
    monkeypatch.setattr(torch.cuda, "device", contextlib.nullcontext)
    return Printed()


def test_a_compiled_kernel_is_kept(printed: Printed) -> None:
    launcher, first, second = (
        Launcher(printed, [1, 1]),
        (array(16), array(16)),
        (array(64), array(64)),
    )
    launcher(*first)
    launcher(*second)
    assert printed.dispatched == [first]
    assert printed.direct == [((4, 1, 1), (*second, 64))]


def test_arrays_off_alignment_are_dispatched_each_time(printed: Printed) -> None:
    launcher = Launcher(printed, [1, 1])
    for address in (8, 8, 0, 0, 8):
        launcher(array(16, address), array(16))
    assert len(printed.dispatched) == 4
    assert len(printed.direct) == 1


def test_tensors_on_the_cpu_are_refused(printed: Printed, monkeypatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    with pytest.raises(GqcError, match="tensors on the CPU: move the model"):
        Launcher(printed, [2, 2])(torch.empty(1, 64), torch.empty(1, 64))


class Bytes(torch.Tensor):
    """A tensor on the CPU that says it is on a GPU."""

    device = torch.device("cuda", 0)  # pyright: ignore[reportAssignmentType]


def test_rows_of_any_shape_are_passed_as_a_matrix(printed: Printed) -> None:
    x, part = torch.ones(2, 3, 64).as_subclass(Bytes), torch.ones(3, 4, 5).as_subclass(Bytes)
    printed.SIGNATURE = dict.fromkeys(("x", "part", "y", "M"), "*fp32")
    Launcher(printed, [2, 3, 2])(x, part, x[0, 0])
    (passed,) = printed.dispatched
    assert [t.shape for t in passed] == [(6, 64), (3, 4, 5), (1, 64)]


def test_source_without_a_file_can_be_inspected() -> None:
    source = "def double(x):\n    return 2 * x\n"
    module = import_source(source)
    assert module.double(4) == 8
    assert inspect.getsource(module.double) == source


def test_arrays_of_8_bits_are_as_the_signature_has_them(printed: Printed) -> None:
    types = ("tensordesc<fp8e4nv[16, 64]>", "*u8", "*fp16", "i32")
    printed.SIGNATURE = dict(zip(("x", "scale", "y", "M"), types, strict=True))
    codes = torch.tensor([-1], dtype=torch.int8).as_subclass(Bytes)
    scale = torch.tensor([1.0]).to(torch.float8_e8m0fnu).as_subclass(Bytes)
    Launcher(printed, [1, 1, 1])(codes, scale, array(16))
    (passed,) = printed.dispatched
    assert [t.dtype for t in passed[:2]] == [torch.float8_e4m3fn, torch.uint8]
    assert [int(t.view(torch.uint8)[0]) for t in passed[:2]] == [255, 127]


def test_the_interpreter_runs_one_program_at_a_time(monkeypatch) -> None:
    """Its state, the program's number among it, is that of the process."""
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    printed, running, most = Printed(), [0], [0]

    def launch(*_: Any) -> None:
        running[0] += 1
        most[0] = max(most[0], running[0])
        time.sleep(0.01)
        running[0] -= 1

    monkeypatch.setattr(printed, "launch", launch)
    launcher, x = Launcher(printed, [1, 1]), torch.zeros(4)
    threads = [threading.Thread(target=launcher, args=(x, x)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
