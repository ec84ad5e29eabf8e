"""What `deterministic="batch"` costs: a layer with it and without take turns in one process.

Times are the processor time of one thread, which other work on the machine disturbs least.

python benchmarks/batch_invariance.py [--shape 2048x2048] [--rows …] [--repeats 15]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from torch import nn

import gqc

RESULTS = Path(__file__).parent / "results" / "batch_invariance.json"
CASES = (
    *(("int4_g128", "bfloat16"), ("w4a16_mxfp4", "bfloat16"), ("w4a16_nvfp4", "bfloat16")),
    *(("w8a16_mxfp8", "bfloat16"), ("w4a8_g128", "bfloat16")),
    *(("int4_g128", "float32"), ("int4_g32", "float32"), ("w4a16_nvfp4", "float32")),
)


def ratio(usual: Callable[[], Any], other: Callable[[], Any], repeats: int) -> dict[str, float]:
    """Medians of both in milliseconds, and the median of their ratios, turn by turn."""
    times: tuple[list[float], list[float]] = [], []
    for _ in range(repeats):
        for run, found in zip((usual, other), times, strict=True):
            start = time.thread_time()
            run()
            found.append(1e3 * (time.thread_time() - start))
    ratios = [b / a for a, b in zip(*times, strict=True)]
    medians = [round(statistics.median(found), 4) for found in times]
    return {"ms": medians[0], "ms_batch": medians[1], "ratio": round(statistics.median(ratios), 3)}


@torch.no_grad()
def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    n, k = map(int, options.shape.split("x"))
    torch.manual_seed(0)
    for scheme, dtype in CASES:
        linear = nn.Linear(k, n, bias=False).to(getattr(torch, dtype))
        common: Any = {"scheme": scheme, "target": options.target, "progress": False}
        layers = [gqc.compile(linear, **common, deterministic=d) for d in (None, "batch")]
        for rows in options.rows:
            x = torch.randn(rows, k).to(linear.weight.dtype)
            for layer in layers:
                layer(x)
            usual, same = (partial(layer, x) for layer in layers)
            found = ratio(usual, same, options.repeats)
            yield {"scheme": scheme, "activations": dtype, "n": n, "k": k, "m": rows, **found}


def main() -> None:
    parser = argparse.ArgumentParser(description="the cost of one order of K for all buckets")
    parser.add_argument("--shape", default="2048x2048")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 16, 32, 256])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    before, rows = os.getloadavg()[0], []
    for row in measured(options):
        rows.append(row)
        print(*row.values(), flush=True)
    load = [before, os.getloadavg()[0]]
    document = {"machine": describe_machine(), "target": options.target, "load_average": load}
    options.output.write_text(json.dumps({**document, "results": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
