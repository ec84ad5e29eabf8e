"""Files quantized as `gqc quantize` does, beside a plain copy of them: GB/s of dense weights.

A checkpoint in bfloat16 is made, then copied and quantized in turn, each written to disk for sure
(fsync); the fastest of some runs counts. Files just written are read from memory.

    python benchmarks/quantize_files.py --gigabytes 0.6 --threads 1
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import typer
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.quantizing import Quantizing

RESULTS = Path(__file__).parent / "results" / "quantize_files.json"
SCHEMES = (
    *("int4_g128_sym", "int4_g128", "int8_row_sym"),
    *("w8a16_mxfp8", "w4a16_mxfp4", "w4a16_nvfp4"),
)
SHAPE = (4096, 8192)


def make(folder: Path, gigabytes: float) -> int:
    """Write a checkpoint of matrices alike in bfloat16, one a shard. Returns its bytes."""
    count = max(1, round(gigabytes * 1e9 / (2 * SHAPE[0] * SHAPE[1])))
    folder.mkdir()
    places = {}
    for i in range(count):
        weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(i)).bfloat16()
        places[f"m.{i}.up.weight"] = file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        save_file({f"m.{i}.up.weight": weight}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return count * 2 * SHAPE[0] * SHAPE[1]


def copy(source: Path, out: Path) -> None:
    out.mkdir()
    for path in source.iterdir():
        with path.open("rb") as read, (out / path.name).open("wb") as write:
            shutil.copyfileobj(read, write, 1 << 22)
            write.flush()
            os.fsync(write.fileno())


def save(source: Path, out: Path) -> None:
    gqc.save(open_checkpoint(source), out, progress=False)


def quantize(scheme: str) -> Callable[[Path, Path], None]:
    def run(source: Path, out: Path) -> None:
        gqc.save(Quantizing(open_checkpoint(source), scheme), out, progress=False)

    return run


def fastest(work: Callable[[Path, Path], None], source: Path, out: Path, runs: int) -> list[float]:
    """Least seconds of the wall clock and of CPU time."""
    found = []
    for _ in range(runs):
        shutil.rmtree(out, ignore_errors=True)
        start = time.perf_counter(), time.process_time()
        work(source, out)
        found.append((time.perf_counter() - start[0], time.process_time() - start[1]))
    return [min(each) for each in zip(*found, strict=True)]


def main(
    gigabytes: Annotated[float, typer.Option(help="size of the checkpoint")] = 0.6,
    threads: Annotated[int, typer.Option(help="of torch")] = 1,
    runs: Annotated[int, typer.Option(help="of each; the fastest counts")] = 3,
    folder: Annotated[Path | None, typer.Option(help="where the files go")] = None,
    output: Annotated[Path, typer.Option(help="where the JSON goes")] = RESULTS,
) -> None:
    """Time copying and quantizing of a checkpoint."""
    warnings.simplefilter("ignore")  # layers judged by name
    torch.set_num_threads(threads)
    works = {"copy": copy, "gqc.save, dense": save, **{name: quantize(name) for name in SCHEMES}}
    table = Table("", "GB/s", "GB/s of CPU time")
    results = {}
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, out = Path(place) / "in", Path(place) / "out"
        total = make(source, gigabytes)
        for name, work in works.items():
            results[name] = [total / s / 1e9 for s in fastest(work, source, out, runs)]
            table.add_row(name, *(f"{rate:.2f}" for rate in results[name]))
    Console().print(table)
    record = {"machine": describe_machine(), "bytes": total, "GB/s, of CPU time": results}
    output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
