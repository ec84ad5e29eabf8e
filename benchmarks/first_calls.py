"""How long the first call of each kernel takes on this CPU: lowered, compiled, linked and run.

Each layer is called with a number of rows for each of its kernels: once with nothing on the disk,
and once more in another process, which finds object code there. Where inputs are quantized, the
first of these calls has that kernel too.

    python benchmarks/first_calls.py [--schemes …] [--activations …]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULTS = Path(__file__).parent / "results" / "first_calls.json"
INTEGERS = [f"int{bits}_g{group}" for bits in range(1, 9) for group in (32, 128)]
FLOATS = ["w4a16_mxfp4", "w4a16_nvfp4", "w6a16_mxfp6", "w8a16_mxfp8", "w8a16_mxint8"]
WITH_INPUTS = ["w4a8_g32", "w4a8_g128", "w8a8_g32", "w8a8_g128"]
MANY = 64
"""Rows for a kernel of that many; one that fewer rows are launched on too is called with these."""
LIMIT = 150
"""Milliseconds that a first call may take."""

Times = dict[str, dict[str, float]]
"""Milliseconds by kernel, of each scheme and activation."""


def first_calls(schemes: list[str], activations: list[str]) -> Times:
    """The times in this process."""
    import torch
    from cpu_gqc import ACTIVATIONS
    from torch import nn

    import gqc

    def layer(size: int, scheme: str, dtype: torch.dtype) -> gqc.CompiledModule:
        linear = nn.Linear(size, size, dtype=dtype)
        return gqc.compile(linear, scheme=scheme, target="cpu", progress=False)

    torch.set_num_threads(1)
    layer(64, "int8_row", torch.float32)(torch.zeros(1, 64))  # loads the compiler
    times: Times = {}
    for activation in activations:
        dtype = ACTIVATIONS[activation]
        for scheme in schemes:
            model = layer(1024, scheme, dtype)
            inputs = {name: torch.randn(m, 1024).to(dtype) for name, m in kernels_of(model)}
            row = {name: milliseconds(model, x) for name, x in inputs.items()}
            times[f"{scheme} {activation}"] = row
    return times


def kernels_of(model: Any) -> list[tuple[str, int]]:
    """A layer's kernels, by their buckets, and a number of rows for each."""
    from gqc.dialects import gq
    from gqc.targets import ANY

    launches = [op for op in model.compilation.result.walk() if isinstance(op, gq.LaunchOp)]
    (launch,) = [op for op in launches if op.parts]
    rows = {name: MANY if most == ANY else most for most, name in reversed(launch.buckets)}
    return sorted(((n.rpartition("_")[2], m) for n, m in rows.items()), key=lambda each: each[1])


def milliseconds(model: Any, x: Any) -> float:
    start = time.perf_counter()
    model(x)
    return (time.perf_counter() - start) * 1e3


def in_a_process(cache: str, options: argparse.Namespace) -> Times:
    """The times in another process, whose cache on the disk is a folder."""
    parts = {name: getattr(options, name) for name in ("schemes", "activations")}
    done = subprocess.run(
        [sys.executable, __file__, "--times", json.dumps(parts)],
        env=os.environ | {"GQC_CACHE": cache},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def measured(options: argparse.Namespace) -> dict[str, Times]:
    """Medians of what some pairs of processes took, `compiled` and `cached`."""
    found: dict[str, list[Times]] = {"compiled": [], "cached": []}
    for _ in range(options.repeats):
        with tempfile.TemporaryDirectory() as cache:
            for runs in found.values():
                runs.append(in_a_process(cache, options))
    return {name: medians(runs) for name, runs in found.items()}


def medians(runs: list[Times]) -> Times:
    return {
        layer: {
            name: round(statistics.median(run[layer][name] for run in runs), 1) for name in kernels
        }
        for layer, kernels in runs[0].items()
    }


def report(times: dict[str, Times]) -> None:
    names = dict.fromkeys(name for row in times["compiled"].values() for name in row)
    table = Table("layer", *names, title="ms of a first call, compiled (cached)")
    for layer, compiled in times["compiled"].items():
        cached = times["cached"][layer]
        cells = {name: f"{ms:.0f} ({cached[name]:.0f})" for name, ms in compiled.items()}
        table.add_row(layer, *(cells.get(name, "") for name in names))
    console = Console(width=100)
    console.print(table)
    every = [ms for row in times["compiled"].values() for ms in row.values()]
    late = sum(ms > LIMIT for ms in every)
    console.print(f"{late} of {len(every)} take more than {LIMIT} ms; the longest {max(every)}")


def main() -> None:
    parser = argparse.ArgumentParser(description="first calls of CPU kernels")
    parser.add_argument("--schemes", nargs="+", default=[*INTEGERS, *FLOATS, *WITH_INPUTS])
    parser.add_argument("--activations", nargs="+", default=["bf16", "f32"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--times", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.times:
        print(json.dumps(first_calls(**options.times)))
        return
    from machine import describe_machine

    times = measured(options)
    report(times)
    document = {"machine": describe_machine(), **times}
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
