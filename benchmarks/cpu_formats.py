"""gqc's formats on a CPU beside one another, and beside what the machine reads meanwhile.

In `cpu.py` every format has its own process and its own minutes, and a machine that others use too
reads faster in some than in others. Here all take turns in one process, over weights beyond the
caches. The read probe runs before and after each sample; one in which memory changed its speed is
left out, and the others are told by that speed, so that ratios are of like moments.

    python benchmarks/cpu_formats.py [--shapes 4096x4096 …] [--schemes …] [--rows 1 2 4]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cpu import machine
from cpu_gqc import Compiled
from cpu_roof import ReadProbe
from cpu_worker import REST, random_input, random_weight
from rich.console import Console
from rich.table import Table

from gqc.formats.elements import ELEMENTS
from gqc.schemes import preset

RESULTS = Path(__file__).parent / "results" / "cpu_formats.json"
SHAPES = ["4096x4096", "11008x4096", "4096x14336"]
SCHEMES = [
    *("int4_g128", "int4_g128_sym", "int4_g32", "int4_g32_sym", "w4a16_mxfp4", "w4a16_nvfp4"),
    *("int2_g128", "int3_g128", "int8_g128", "w8a16_mxfp8"),
]
STEADY = 1.1
"""How far apart the probe's two speeds may be."""
BAND = 10
"""GB/s: samples beside as many tens of them are put together."""
LEAST = 5
"""Samples that a median is of."""

Sample = tuple[float, float]
"""Milliseconds of a product, and the GB/s beside it."""


def sample(run: Callable[[], Any], products: int, probe: ReadProbe) -> Sample | None:
    """A sample of a run of so many products; None if memory was not steady."""
    before = probe.gigabytes_per_second()
    start = time.perf_counter()
    run()
    ms = (time.perf_counter() - start) * 1e3 / products
    time.sleep(REST)  # till the kernel's threads no longer wait for more work
    speeds = before, probe.gigabytes_per_second()
    return (ms, sum(speeds) / 2) if max(speeds) < STEADY * min(speeds) else None


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Median times by shape, rows, scheme and speed of memory."""
    probe = ReadProbe(options.threads, huge=True)
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        weight = random_weight(n, k)
        layers = {
            scheme: Compiled(weight, 0, options.threads, scheme, options.activations, "cpu")
            for scheme in options.schemes
        }
        for m in options.rows:
            runs = {scheme: layer.bind(random_input(m, k)) for scheme, layer in layers.items()}
            for run in runs.values():
                run()  # compiles
            turns = [
                (scheme, sample(run, layers[scheme].copies, probe))
                for _ in range(options.turns)
                for scheme, run in runs.items()
            ]
            for scheme, layer in layers.items():
                row = {"n": n, "k": k, "m": m, "scheme": scheme, "bytes": layer.nbytes}
                found = [each for name, each in turns if name == scheme and each is not None]
                yield from (row | band for band in by_speed(found))


def by_speed(samples: list[Sample]) -> Iterator[dict[str, Any]]:
    """Medians of the samples beside one speed of memory, where there are enough."""
    bands: dict[int, list[Sample]] = {}
    for each in samples:
        bands.setdefault(int(each[1] // BAND) * BAND, []).append(each)
    for band, found in sorted(bands.items()):
        if len(found) >= LEAST:
            ms, speeds = zip(*found, strict=True)
            median, read = statistics.median(ms), statistics.median(speeds)
            yield {"memory": band, "samples": len(found), "median_ms": median, "read_gbs": read}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Bandwidth as part of the probe's, and times and bytes over those of the fastest of 4 bits."""
    titles = ("memory GB/s", "shape", "M", "scheme", "samples", "ms", "of what is read")
    table = Table(*titles, "over fastest 4-bit", "bytes")
    case = ("memory", "n", "k", "m")
    for row in sorted(rows, key=lambda r: [r[key] for key in case]):
        same = [r for r in rows if all(r[key] == row[key] for key in case)]
        four = [r for r in same if ELEMENTS[preset(r["scheme"]).element].bits == 4]
        fastest = min(four, key=lambda r: r["median_ms"], default=None)
        over = ["-", "-"]
        if fastest is not None:
            over = [f"{row[key] / fastest[key]:.2f}" for key in ("median_ms", "bytes")]
        share = row["bytes"] / row["median_ms"] / 1e6 / row["read_gbs"]
        memory, ms = f"{row['memory']}-{row['memory'] + BAND}", f"{row['median_ms']:.3f}"
        cells = (f"{row['n']}x{row['k']}", str(row["m"]), row["scheme"], str(row["samples"]), ms)
        table.add_row(memory, *cells, f"{share:.2f}", *over)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="gqc's formats beside one another on a CPU")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--activations", default="bf16")
    parser.add_argument("--turns", type=int, default=40)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = list(measured(options))
    Console(width=120).print(table_of(rows))
    document = {"machine": machine(options.threads), "results": rows}
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
