"""One peer of `cpu.py`, measured in a process of its own: times and errors, as JSON in a file.

It runs in a Python that has the peer's library; gqc is imported for gqc's own layers alone.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import statistics
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from cpu_peers import PEERS, Layer, Peer, Run
from cpu_roof import ReadProbe

OURS = "gqc "
REST = 0.01
"""Seconds in which a library's threads fall asleep before bandwidth is measured, and the probe's
before the library is."""
ERROR_ROWS = (16, 64)
"""Few and many rows of x, whose errors are taken: they have kernels of their own."""


def peer_of(name: str) -> Peer:
    """The peer of a name; `gqc int4_g128 bf16` is ours with that scheme and activation
    (and target)."""
    if not name.startswith(OURS):
        return PEERS[name]
    from cpu_gqc import peer

    return peer(*name.removeprefix(OURS).split())


def random_weight(n: int, k: int) -> np.ndarray:
    """[N, K] in float32."""
    return np.random.default_rng(0).standard_normal((n, k), np.float32) / 32


def random_input(rows: int, k: int) -> np.ndarray:
    """[M, K] in float32, of values that bfloat16 and float16 have too."""
    x = np.random.default_rng(1).standard_normal((rows, k), np.float32)
    return (x.view(np.uint32) & 0xFFFF0000).view(np.float32)


def exact(y: Any) -> np.ndarray:
    """A library's array, in float64."""
    return y.double().numpy() if hasattr(y, "double") else np.asarray(y, np.float64)


def error(layer: Layer, k: int) -> float:
    """The greatest error of a product, over the root mean square of the exact one: that of x with
    what the layer's own packed weight stands for, in float64."""
    weight, greatest = layer.weight().T, 0.0
    for rows in ERROR_ROWS:
        x = random_input(rows, k)
        expected = x.astype(np.float64) @ weight
        off = np.abs(exact(layer.bind(x)()) - expected)
        greatest = max(greatest, float(off.max() / np.sqrt((expected**2).mean())))
    return greatest


class Sampler:
    """Times runs, with the read bandwidth beside each."""

    def __init__(self, repeats: int, threads: int):
        self.repeats = repeats
        self.probes = {
            "read_gbs": ReadProbe(threads, huge=True),
            "read_small_pages_gbs": ReadProbe(threads, huge=False),
        }

    def measure(self, run: Run, copies: int) -> dict[str, Any]:
        """Milliseconds of one product: each sample goes through every copy of the weight."""
        run()
        times, speeds = [], {name: [] for name in self.probes}
        for _ in range(self.repeats):
            time.sleep(REST)
            for name, probe in self.probes.items():
                speeds[name].append(probe.gigabytes_per_second())
            time.sleep(REST)
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3 / copies)
        return {
            "median_ms": statistics.median(times),
            "min_ms": min(times),
            **{name: statistics.median(each) for name, each in speeds.items()},
            "load_average": os.getloadavg()[0],
        }


def release_memory() -> None:
    """Give freed memory back, so that the next layer's lies as it would in a new process."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def cases(options: argparse.Namespace, peer: Peer) -> Iterator[tuple[int, int, int]]:
    """(N, K, group); a peer without a choice of groups is measured once."""
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        for group in options.groups if peer.grouped else [0]:
            yield n, k, group


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """What is known of a peer after this run."""
    peer = peer_of(options.peer)
    sampler = Sampler(options.repeats, options.threads)
    results, errors = [], []
    for n, k, group in cases(options, peer):
        layer = peer.make(random_weight(n, k), group, options.threads)
        shape = {"peer": options.peer, "n": n, "k": k, "group": group}
        if f"{n}x{k}" == options.error_shape:
            errors.append({**shape, "error": error(layer, k)})
        for rows in options.rows:
            times = sampler.measure(layer.bind(random_input(rows, k)), layer.copies)
            results.append({**shape, "m": rows, "bytes": layer.nbytes, **times})
        del layer
        release_memory()
    known = {"numerics": peer.numerics, "bits": peer.bits}
    known["versions"] = {package: version(package) for package in peer.packages}
    return {"peer": known, "results": results, "errors": errors}


def main() -> None:
    parser = argparse.ArgumentParser(description="one peer of cpu.py")
    parser.add_argument("peer")
    parser.add_argument("--shapes", nargs="+", required=True)
    parser.add_argument("--rows", nargs="+", type=int, required=True)
    parser.add_argument("--groups", nargs="+", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--repeats", type=int, required=True)
    parser.add_argument("--error-shape")
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    options.output.write_text(json.dumps(measured(options)))


if __name__ == "__main__":
    main()
