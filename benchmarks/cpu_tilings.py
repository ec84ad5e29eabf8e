"""The table of CPU tilings against measurement: what it chooses, beside the best of all candidates.

`gqc.targets` chooses a tile by the number of rows and the width of codes alone. Here kernels of
every candidate run in turn, in one process, over weights that are beyond the caches.

    python benchmarks/cpu_tilings.py [--shapes 4096x4096] [--schemes …] [--rows …]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from cpu import machine
from cpu_gqc import Compiled
from cpu_worker import random_input, random_weight
from rich.console import Console
from rich.table import Table

from gqc.formats.elements import ELEMENTS
from gqc.schemes import preset
from gqc.targets import ANY, TARGETS, Target, Tiling, Tilings, resolve

RESULTS = Path(__file__).parent / "results" / "cpu_tilings.json"
SCHEMES = ["int2_g128", "int3_g128", "int4_g32", "int4_g128", "w4a16_mxfp4", "int8_g128"]
TILES = ((1, 64), (1, 32), (2, 64), (4, 64), (4, 32), (4, 16), (8, 32), (8, 16))
PANELS = ((4, 64), (4, 32), (8, 32))
CANDIDATES = (
    *(Tiling(ANY, bm, bn, 0) for bm, bn in TILES),
    *(Tiling(ANY, bm, bn, 0, panel=256) for bm, bn in PANELS),
)


def chosen(target: Target, scheme: str, rows: int, activation: str) -> Tiling:
    """The table's tile for a number of rows."""
    tilings = target.tilings_of(ELEMENTS[preset(scheme).element].bits, activation)
    found = next(t for t in tilings if rows <= t.rows or t.rows == ANY)
    return replace(found, rows=ANY)


def layer(target: Target, tiling: Tiling, scheme: str, n: int, k: int, options: Any) -> Compiled:
    """A layer whose kernels have one tile for any number of rows."""
    only = replace(target, tilings=Tilings((tiling,)), f32_tilings=None)
    with mock.patch.dict(TARGETS, {target.name: only}):
        weight = random_weight(n, k)
        return Compiled(weight, 0, options.threads, scheme, options.activations, target.name)


def milliseconds(compiled: Compiled, rows: int, k: int, repeats: int) -> float:
    """Median time of one product, over all copies of the weight."""
    run = compiled.bind(random_input(rows, k))
    run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3 / compiled.copies)
    return statistics.median(times)


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The times of every candidate, by shape, scheme and rows."""
    target = resolve("cpu")
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        for scheme in options.schemes:
            times: dict[int, dict[str, float]] = {rows: {} for rows in options.rows}
            for tiling in CANDIDATES:
                compiled = layer(target, tiling, scheme, n, k, options)
                for rows in options.rows:
                    if tiling.bm < 2 * rows:  # else most of what it computes is not wanted
                        ms = milliseconds(compiled, rows, k, options.repeats)
                        times[rows][name(tiling)] = ms
                del compiled
            for rows, by_name in times.items():
                choice = name(chosen(target, scheme, rows, options.activations))
                yield {"n": n, "k": k, "scheme": scheme, "m": rows, "choice": choice, "ms": by_name}


def name(tiling: Tiling) -> str:
    return f"{tiling.bm}x{tiling.bn}{' panel' if tiling.panel else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description="CPU tilings, chosen and measured")
    parser.add_argument("--shapes", nargs="+", default=["4096x4096"])
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 4, 16, 64, 256])
    parser.add_argument("--activations", default="bf16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    table = Table("shape", "scheme", "M", "chosen", "ms", "best", "ms", "chosen / best")
    rows = []
    for row in measured(options):
        rows.append(row)
        best = min(row["ms"], key=row["ms"].__getitem__)
        ours, least = row["ms"][row["choice"]], row["ms"][best]
        shape = f"{row['n']}x{row['k']}"
        cells = (row["choice"], f"{ours:.3f}", best, f"{least:.3f}", f"{ours / least:.2f}")
        table.add_row(shape, row["scheme"], str(row["m"]), *cells)
    Console(width=120).print(table)
    document = {"machine": machine(options.threads), "results": rows}
    options.output.write_text(json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()
