"""Linear layers on the CPU: gqc's kernels beside ATen's int4 kernel and torch's dense matmul.

All run in one process in turns, on copies of the weights that no cache holds together, so what is
measured is a model's next layer. Prints a table of medians and writes them as JSON with the
machine's description.

    python benchmarks/cpu_linear.py --shapes 4096x4096 11008x4096 --rows 1 4 16 64
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from layers import layer
from llvmlite import binding
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from xdsl.dialects import builtin
from xdsl.dialects.builtin import ModuleOp

from gqc.codegen import cpu
from gqc.codegen.cpu import isa as tiers
from gqc.dialects import gq, tile
from gqc.tools.gqc_opt import tile_kernels

ROTATED_BYTES = 256 << 20
TYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16, "i32": torch.int32}
RESULTS = Path(__file__).parent / "results" / "cpu_linear.json"

Call = Callable[[int], object]
"""Runs a peer on one of the copies of its weights."""


def kernel_for(module: ModuleOp, rows: int) -> tile.KernelOp:
    """The kernel of the bucket that holds a number of rows."""
    launch = next(op for op in module.walk() if isinstance(op, gq.LaunchOp))
    buckets = launch.rows.get_values()
    bucket = next(i for i, limit in enumerate(buckets) if limit < 0 or rows <= limit)
    return list(tile_kernels(module))[bucket]  # type: ignore[return-value]


def random_array(type_: builtin.MemRefType, rows: int) -> torch.Tensor:
    """Random data for an argument of a kernel; any bits are codes."""
    shape = [rows if n < 0 else n for n in type_.get_shape()]
    dtype = TYPES[str(type_.element_type)]
    if dtype == torch.int32:
        return torch.randint(-(1 << 31), (1 << 31) - 1, shape, dtype=dtype)
    return torch.rand(shape).to(dtype)


def copies_of(size: int) -> int:
    return ROTATED_BYTES // size + 1


def ours(n: int, k: int, rows: int, scheme: str, activation: str, isa: str) -> Call:
    kernel = kernel_for(layer(n, k, scheme, f"cpu_{isa}", activation), rows)
    x, *weights, y = (random_array(a.type, rows) for a in kernel.body.block.args)  # type: ignore[arg-type]
    size = sum(w.nbytes for w in weights)
    sets = [weights, *([w.clone() for w in weights] for _ in range(copies_of(size) - 1))]
    run = cpu.load(kernel, isa)
    return lambda i: run(x, *sets[i % len(sets)], y)


def aten_int4(n: int, k: int, rows: int, group: int) -> Call:
    x = torch.rand(rows, k).bfloat16()
    codes = torch.randint(0, 16, (n, k), dtype=torch.int32)
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    sets = [packed.clone() for _ in range(copies_of(packed.nbytes))]
    scales = torch.rand(k // group, n, 2).bfloat16()
    matmul = torch.ops.aten._weight_int4pack_mm_for_cpu
    return lambda i: matmul(x, sets[i % len(sets)], group, scales)


def dense(n: int, k: int, rows: int, activation: str) -> Call:
    x, w = torch.rand(rows, k).to(TYPES[activation]), torch.rand(n, k).to(TYPES[activation])
    sets = [w.clone() for _ in range(copies_of(w.nbytes))]
    return lambda i: torch.nn.functional.linear(x, sets[i % len(sets)])


def peers(n: int, k: int, rows: int, scheme: str, activation: str, isa: str) -> dict[str, Call]:
    calls = {"gqc": ours(n, k, rows, scheme, activation, isa)}
    group = re.fullmatch(r"int4_g(\d+)", scheme)
    if group and activation == "bf16":
        calls["aten int4"] = aten_int4(n, k, rows, int(group[1]))
    calls[f"torch {activation}"] = dense(n, k, rows, activation)
    return calls


def measure(calls: dict[str, Call], repeats: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each peer, taken in turns so that all meet the same noise."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(repeats + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call(i)
            if i >= 2:  # the first two warm up
                times[name].append((time.perf_counter() - start) * 1e3)
    return {
        name: {"median_ms": statistics.median(t), "min_ms": min(t)} for name, t in times.items()
    }


def machine() -> dict[str, object]:
    """The machine, its vector instructions, and how busy it is."""
    features = binding.get_host_cpu_features()
    return describe_machine() | {
        "llvm": ".".join(map(str, binding.llvm_version_info)),
        "llvm_cpu": binding.get_host_cpu_name(),
        "features": sorted(f for f, on in features.items() if on and f.startswith(("avx", "fma"))),
        "load_average": os.getloadavg()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="gqc's CPU kernels beside ATen's and torch's")
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "11008x4096"], help="NxK")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 8, 16, 64, 256])
    parser.add_argument("--schemes", nargs="+", default=["int4_g128"])
    parser.add_argument("--activations", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--isa", default=tiers.host().name)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    table = Table("layer", "scheme", "x", "M", "gqc ms", "GFLOP/s", "peer", "ms", "speed-up")
    results = []
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        cases = (
            (s, a, m) for s in options.schemes for a in options.activations for m in options.rows
        )
        for scheme, activation, rows in cases:
            calls = peers(n, k, rows, scheme, activation, options.isa)
            times = measure(calls, options.repeats)
            mine = times["gqc"]["median_ms"]
            results.append(
                {"n": n, "k": k, "scheme": scheme, "activation": activation, "m": rows}
                | {"isa": options.isa, "times": times}
            )
            for name, peer in list(times.items())[1:]:
                ratio = peer["median_ms"] / mine
                left = (shape, scheme, activation, str(rows), f"{mine:.3f}")
                speed = f"{2e-6 * rows * n * k / mine:.0f}"
                table.add_row(*left, speed, name, f"{peer['median_ms']:.3f}", f"{ratio:.2f}×")
    Console(width=100).print(table)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "results": results}
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
