"""gqc's formats on a CPU beside one another, and beside what the machine reads meanwhile.

In `cpu.py` every format has its own process and its own minutes, and a machine that others use too
reads faster in some than in others. Here all take turns in one process, over weights beyond the
caches, and the read probe with them: ratios are of the same moments.

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
TURNS = 15


def milliseconds(run: Callable[[], Any], products: int) -> float:
    """Of one product, of which a run has so many."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3 / products


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Median times by shape, rows and scheme, each beside the median of what was read."""
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
            times: dict[str, list[float]] = {scheme: [] for scheme in layers}
            read = []
            for turn in range(TURNS + 1):
                for scheme, run in runs.items():
                    ms = milliseconds(run, layers[scheme].copies)
                    if turn:  # the first compiles
                        times[scheme].append(ms)
                time.sleep(REST)
                read.append(probe.gigabytes_per_second())
                time.sleep(REST)
            for scheme, layer in layers.items():
                ms = statistics.median(times[scheme])
                row = {"n": n, "k": k, "m": m, "scheme": scheme, "bytes": layer.nbytes}
                yield row | {"median_ms": ms, "read_gbs": statistics.median(read)}


def table_of(rows: list[dict[str, Any]]) -> Table:
    """Bandwidth as part of the probe's, and times and bytes over those of the fastest of 4 bits."""
    table = Table("shape", "M", "scheme", "ms", "of read bandwidth", "over fastest 4-bit", "bytes")
    for row in rows:
        same = [r for r in rows if all(r[key] == row[key] for key in ("n", "k", "m"))]
        four = [r for r in same if ELEMENTS[preset(r["scheme"]).element].bits == 4]
        fastest = min(four, key=lambda r: r["median_ms"], default=None)
        over = ["-", "-"]
        if fastest is not None:
            over = [f"{row[key] / fastest[key]:.2f}" for key in ("median_ms", "bytes")]
        share = row["bytes"] / row["median_ms"] / 1e6 / row["read_gbs"]
        cells = (f"{row['n']}x{row['k']}", str(row["m"]), row["scheme"], f"{row['median_ms']:.3f}")
        table.add_row(*cells, f"{share:.2f}", *over)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="gqc's formats beside one another on a CPU")
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--activations", default="bf16")
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
