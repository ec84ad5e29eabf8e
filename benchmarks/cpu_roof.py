"""What a CPU can do at most: read bandwidth and the peaks of its dot products, measured.

Loops are compiled with LLVM and run on threads that sleep in between, so no pool of a library that
is measured beside them finds its cores taken. Nothing of gqc is needed here.
"""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from llvmlite import binding

READ_BYTES = 256 << 20
HUGE_PAGE = 2 << 20
STREAMS = 8
"""Vectors that one step of the reading loop loads."""
CHAINS = 16
"""Independent sums: more than the latency of a dot product times how many start in a cycle."""
STEPS = 1 << 18
TRIES = 100
"""Short ones, so that some are not disturbed."""

LOOP = """{declarations}
define i64 @loop(ptr %p, i64 %n) {{
entry:
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%next, %loop]
{sums}
{body}
  %next = add i64 %i, {step}
  %more = icmp ult i64 %next, %n
  br i1 %more, label %loop, label %done
done:
{kept}
  ret i64 0
}}"""


def loop_text(
    vector: str, chains: int, body: Callable[[int], str], step: int, declarations: str = ""
) -> str:
    """A loop over %i below %n that carries sums %a0, %a1 …, of which a body makes %b0, %b1 ….

    They end up at %p, so that they are needed.
    """
    sums = [
        f"  %a{j} = phi {vector} [zeroinitializer, %entry], [%b{j}, %loop]" for j in range(chains)
    ]
    kept = [f"  store volatile {vector} %b{j}, ptr %p" for j in range(chains)]
    return LOOP.format(
        declarations=declarations,
        sums="\n".join(sums),
        body="\n".join(map(body, range(chains))),
        step=step,
        kept="\n".join(kept),
    )


def compiled(text: str) -> tuple[Any, Callable[[int, int], int]]:
    """What keeps a loop's code alive, and the loop, which runs without Python's lock."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    machine = target.create_target_machine(
        cpu=binding.get_host_cpu_name(), features=binding.get_host_cpu_features().flatten(), opt=3
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(text), machine)
    engine.finalize_object()
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64)
    return engine, function(engine.get_function_address("loop"))


class Threads:
    """Threads that run a loop side by side and then sleep."""

    def __init__(self, count: int):
        self.count = count
        self.pool = ThreadPoolExecutor(count)

    def seconds(self, work: Callable[[int], object]) -> float:
        """Time until every thread has done its work, which is given the thread's number."""
        start = time.perf_counter()
        for _ in self.pool.map(work, range(self.count)):
            pass
        return time.perf_counter() - start


# Reading


def has(feature: str) -> bool:
    return binding.get_host_cpu_features().get(feature, False)


def reading_loop() -> str:
    lanes = 8 if has("avx512f") else 4 if has("avx") else 2
    size, vector = 8 * lanes, f"<{lanes} x i64>"

    def body(j: int) -> str:
        return f"""  %o{j} = add i64 %i, {size * j}
  %q{j} = getelementptr i8, ptr %p, i64 %o{j}
  %v{j} = load {vector}, ptr %q{j}, align {size}
  %b{j} = xor {vector} %a{j}, %v{j}"""

    return loop_text(vector, STREAMS, body, size * STREAMS)


def pages(size: int, huge: bool) -> tuple[mmap.mmap, np.ndarray]:
    """Memory of that size, written to, in huge pages where the system gives them."""
    memory = mmap.mmap(-1, size + HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if huge and hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, np.uint8)
    array[:] = 1
    start = -array.ctypes.data % HUGE_PAGE
    return memory, array[start : start + size]


class ReadProbe:
    """Reads memory that no cache holds, each thread a part of it."""

    def __init__(self, threads: int, huge: bool):
        self.threads = Threads(threads)
        self.engine, self.loop = compiled(reading_loop())
        self.memory, self.array = pages(READ_BYTES, huge)

    def gigabytes_per_second(self) -> float:
        part = READ_BYTES // self.threads.count // HUGE_PAGE * HUGE_PAGE
        start = self.array.ctypes.data
        seconds = self.threads.seconds(lambda i: self.loop(start + i * part, part))
        return part * self.threads.count / seconds / 1e9


# Multiplying


@dataclass(frozen=True)
class Dot:
    """An instruction that adds products to each lane of a vector of sums."""

    needs: tuple[str, ...]
    """CPU features, as LLVM calls them."""
    intrinsic: str
    sums: str
    operands: str
    operations: int
    """Multiplications and additions of one instruction."""
    sums_last: bool = False

    @property
    def declaration(self) -> str:
        types = (self.sums, self.operands, self.operands)
        return f"declare {self.sums} @{self.intrinsic}({', '.join(types)})"

    def call(self, j: int) -> str:
        factors = f"{self.operands} %x, {self.operands} %w"
        addend = f"{self.sums} %a{j}"
        arguments = f"{factors}, {addend}" if self.sums_last else f"{addend}, {factors}"
        return f"  %b{j} = call {self.sums} @{self.intrinsic}({arguments})"

    def loop(self) -> str:
        """The factors lie at %p, read before the loop."""
        text = loop_text(self.sums, CHAINS, self.call, 1, self.declaration)
        factors = [f"  %{name} = load volatile {self.operands}, ptr %p" for name in "xw"]
        return text.replace("entry:", "\n".join(("entry:", *factors)))


DOTS = {
    "f32": (
        Dot(("avx512f",), "llvm.fma.v16f32", "<16 x float>", "<16 x float>", 32, True),
        Dot(("fma",), "llvm.fma.v8f32", "<8 x float>", "<8 x float>", 16, True),
    ),
    "bf16": (
        Dot(
            ("avx512bf16",),
            "llvm.x86.avx512bf16.dpbf16ps.512",
            "<16 x float>",
            "<32 x bfloat>",
            64,
        ),
    ),
    "int8": (
        Dot(("avx512vnni",), "llvm.x86.avx512.vpdpbusd.512", "<16 x i32>", "<16 x i32>", 128),
        Dot(("avxvnni",), "llvm.x86.avx512.vpdpbusd.256", "<8 x i32>", "<8 x i32>", 64),
    ),
}
"""Instructions by the type of the factors, the widest first."""


def peak(dot: Dot, threads: Threads) -> float:
    """Billions of operations a second, the best of some tries."""
    engine, loop = compiled(dot.loop())
    memory, array = pages(HUGE_PAGE * threads.count, huge=True)
    array[:] = 0
    start = array.ctypes.data
    seconds = min(
        threads.seconds(lambda i: loop(start + i * HUGE_PAGE, STEPS)) for _ in range(TRIES)
    )
    del engine, memory
    return threads.count * STEPS * CHAINS * dot.operations / seconds / 1e9


@cache
def roof(threads: int, repeats: int = 10) -> dict[str, Any]:
    """GB/s read (median and most, with huge and small pages), and GFLOP/s by type of factors."""
    found: dict[str, Any] = {}
    for name, huge in (("huge_pages", True), ("small_pages", False)):
        probe = ReadProbe(threads, huge)
        speeds = [probe.gigabytes_per_second() for _ in range(repeats)]
        found[f"read_{name}_gbs"] = {"median": statistics.median(speeds), "max": max(speeds)}
    pool = Threads(threads)
    for name, dots in DOTS.items():
        if dot := next((dot for dot in dots if all(map(has, dot.needs))), None):
            found[f"dot_{name}_gflops"] = peak(dot, pool)
    return found


if __name__ == "__main__":
    import json
    import os

    print(json.dumps(roof(len(os.sched_getaffinity(0))), indent=1))
