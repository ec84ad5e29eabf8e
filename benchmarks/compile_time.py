"""Compile time: every IR pass on Llama-3-8B-shaped models of 8 to 64 layers, weights aside.

The weights are on the meta device and folded by name only, so what is timed is work on the graph:
it should be seconds and grow linearly with the layers. Capture (torch.export) and the import of its
graph into IR come before the passes and are listed apart. Times are CPU seconds: all of this runs
on one core, and what else the machine does should not count.

    python benchmarks/compile_time.py [--layers 8 --layers 16] [--target sm_90]
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from transformers import LlamaConfig, LlamaForCausalLM
from xdsl.dialects.builtin import ModuleOp

from gqc.frontend.capture import capture
from gqc.frontend.import_fx import import_fx
from gqc.passes.pipeline import pipeline, run_stages
from gqc.targets import resolve

RESULTS = Path(__file__).parent / "results" / "compile_time.json"
SCHEME = "int4_g128"
CONTRACTS = ("imported", "grouped", "legal", "kernels")
"""Entries that `run_stages` reports after a stage's last pass: the time its verifier took."""


@dataclass
class Result:
    """CPU seconds for one model, of the fastest of several runs (capture: of one)."""

    layers: int
    operations: int
    capture: float
    import_fx: float
    passes: dict[str, float]
    """Each pass, and the verifier of each contract."""
    all_passes: float
    all_passes_wall: float
    """Of the same run, by the clock on the wall."""


def llama(layers: int) -> LlamaForCausalLM:
    """Llama 3 8B with another number of layers, bf16, without storage."""
    config = LlamaConfig(
        vocab_size=128256,
        hidden_size=4096,
        intermediate_size=14336,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=8,
        dtype=torch.bfloat16,
    )
    with torch.device("meta"):
        return LlamaForCausalLM(config).bfloat16().eval()


def timed(function: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """What a function returns, and its CPU seconds."""
    begin = time.process_time()
    result = function(*args)
    return result, time.process_time() - begin


def time_passes(module: ModuleOp, target: str) -> tuple[dict[str, float], float]:
    """CPU seconds of each pass and of each contract's verifier, and wall seconds of all of them."""
    seconds: dict[str, float] = {}
    copy, stages = module.clone(), pipeline((f"*={SCHEME}",), target)
    begin, last = time.perf_counter(), time.process_time()

    def after(name: str, _: ModuleOp) -> None:
        nonlocal last
        now = time.process_time()
        seconds[f"verify {name}" if name in CONTRACTS else name] = now - last
        last = now

    run_stages(copy, stages, after)
    return seconds, time.perf_counter() - begin


def measure(layers: int, target: str, runs: int) -> Result:
    """Capture, import and compile one model."""
    inputs = {"input_ids": torch.zeros(2, 8, dtype=torch.int64, device="meta")}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program, capture_seconds = timed(capture, llama(layers), inputs)
    imports = [timed(import_fx, program) for _ in range(runs)]
    imported, import_seconds = min(imports, key=lambda run: run[1])
    measured = (time_passes(imported.module, target) for _ in range(runs))
    best, wall = min(measured, key=lambda run: sum(run[0].values()))
    total, operations = sum(best.values()), sum(1 for _ in imported.module.walk())
    return Result(layers, operations, capture_seconds, import_seconds, best, total, wall)


def table_of(results: list[Result], target: str) -> Table:
    """A column for each model, and seconds a layer of the largest over those of the smallest."""
    table = Table(title=f"CPU seconds to compile Llama-3-8B's graph, {SCHEME} for {target}")
    table.add_column("")
    for result in results:
        table.add_column(f"{result.layers} layers", justify="right")
    table.add_column("growth a layer", justify="right")

    def row(name: str, seconds: list[float], **style: Any) -> None:
        table.add_row(
            name, *(f"{s:.3f}" for s in seconds), f"{growth(results, seconds):.2f}", **style
        )

    for name in results[0].passes:
        row(name, [r.passes[name] for r in results])
    table.add_section()
    row("all passes", [r.all_passes for r in results], style="bold")
    row("all passes, wall", [r.all_passes_wall for r in results])
    table.add_section()
    row("capture (torch.export)", [r.capture for r in results])
    row("import", [r.import_fx for r in results])
    return table


def growth(results: list[Result], seconds: list[float]) -> float:
    """Seconds a layer of the largest model over those of the smallest: 1 is linear."""
    return (seconds[-1] / results[-1].layers) / (seconds[0] / results[0].layers)


def main(
    layers: Annotated[list[int] | None, typer.Option(help="models, from small to large")] = None,
    target: str = "sm_90",
    runs: Annotated[int, typer.Option(help="runs of the passes; the fastest counts")] = 3,
    output: Annotated[Path, typer.Option(help="where the JSON goes")] = RESULTS,
) -> None:
    """Time every IR pass on Llama-3-8B-shaped models."""
    name = resolve(target).name
    measure(1, name, runs=1)  # imports what is imported lazily
    results = [measure(count, name, runs) for count in layers or (8, 16, 32, 64)]
    Console(width=120).print(table_of(results, name))
    linearity = growth(results, [r.all_passes for r in results])
    record = {
        "machine": describe_machine(),
        "target": name,
        "scheme": SCHEME,
        "growth_a_layer": linearity,
        "results": [asdict(r) for r in results],
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(record, indent=2) + "\n")
    print(f"written to {output}")


if __name__ == "__main__":
    typer.run(main)
