"""Tokens a second of SmolLM2 on the CPU: gqc and llama.cpp on the same file, Q4_1.

Each runs in a process of its own: a prompt of 512 tokens of WikiText-2, and then tokens one after
the other, each the likeliest. Medians of some runs, after one that warms up.

    python benchmarks/cpu_tokens.py --peer-python OTHER/bin/python
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
from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "cpu_tokens.json"
PROMPT_TOKENS = 512
NEW_TOKENS = 64


class Model(ABC):
    """A language model with a cache of what it has read."""

    @abstractmethod
    def reset(self) -> None:
        """Forget everything."""

    @abstractmethod
    def read(self, tokens: list[int]) -> int:
        """Read tokens, and give the likeliest after them."""

    def start(self, prompt: list[int]) -> int:
        self.reset()
        return self.read(prompt)

    def next(self, token: int) -> int:
        return self.read([token])


class Gqc(Model):
    """`gqc.load` of the file, run by transformers' model."""

    def __init__(self, path: Path, threads: int, **options: Any):
        import torch

        import gqc

        torch.set_num_threads(threads)
        self.torch = torch
        dtype = getattr(torch, options.pop("dtype", "float32"))
        self.model = gqc.load(path, dtype=dtype, target="cpu", progress=False, **options)

    def reset(self) -> None:
        from transformers import DynamicCache

        self.cache = DynamicCache(config=self.model.config)

    def read(self, tokens: list[int]) -> int:
        with self.torch.inference_mode():
            ids = self.torch.tensor([tokens])
            found = self.model(ids, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
            return int(found.logits[0, -1].argmax())


class Generator(Model):
    """`gqc.generator` of the file: one graph, and what is between its kernels by inductor."""

    def __init__(self, path: Path, threads: int, dtype: str):
        import torch

        import gqc

        torch.set_num_threads(threads)
        length = PROMPT_TOKENS + NEW_TOKENS
        kind = getattr(torch, dtype)
        self.model = gqc.generator(path, length=length, dtype=kind, target="cpu", progress=False)

    def reset(self) -> None:
        self.model.reset()

    def read(self, tokens: list[int]) -> int:
        return int(self.model.read(tokens).argmax())


class LlamaCpp(Model):
    """llama-cpp-python, as llama.cpp sets itself up."""

    def __init__(self, path: Path, threads: int):
        import llama_cpp  # pyright: ignore[reportMissingImports]

        self.lib = llama_cpp
        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=PROMPT_TOKENS + NEW_TOKENS,
            n_batch=PROMPT_TOKENS,
            n_threads=threads,
            n_threads_batch=threads,
            verbose=False,
        )

    def reset(self) -> None:
        self.model.reset()

    def read(self, tokens: list[int]) -> int:
        import numpy as np

        self.model.eval(tokens)
        logits = self.lib.llama_get_logits_ith(self.model.ctx, -1)
        return int(np.ctypeslib.as_array(logits, (self.model.n_vocab(),)).argmax())


RUNNERS: dict[str, Callable[[Path, int], Model]] = {
    "gqc f32": Gqc,
    "gqc bf16": lambda path, threads: Gqc(path, threads, dtype="bfloat16"),
    "gqc generator f32": lambda path, threads: Generator(path, threads, "float32"),
    "gqc generator bf16": lambda path, threads: Generator(path, threads, "bfloat16"),
    "llama.cpp": LlamaCpp,
}
"""Ways to run the file, by name; another way is another row. Those of gqc begin with its name."""
PACKAGES = {name: "gqc" if name.startswith("gqc") else "llama-cpp-python" for name in RUNNERS}


def once(model: Model, prompt: list[int]) -> tuple[float, float, list[int]]:
    """Tokens a second of the prompt and of decoding, and the new tokens."""
    start = time.perf_counter()
    tokens = [model.start(prompt)]
    read = time.perf_counter()
    for _ in range(NEW_TOKENS):
        tokens.append(model.next(tokens[-1]))
    done = time.perf_counter()
    return len(prompt) / (read - start), NEW_TOKENS / (done - read), tokens


def measured(name: str, job: dict[str, Any]) -> dict[str, Any]:
    """Medians, and the first tokens, by which runners can be told to agree."""
    model = RUNNERS[name](Path(job["path"]), job["threads"])
    runs = [once(model, job["prompt"]) for _ in range(job["repeats"] + 1)][1:]
    prefill, decode, tokens = zip(*runs, strict=True)
    return {
        "prefill_tokens_per_s": statistics.median(prefill),
        "decode_tokens_per_s": statistics.median(decode),
        "runs": [{"prefill": p, "decode": d} for p, d in zip(prefill, decode, strict=True)],
        "version": version(PACKAGES[name]),
        "first_tokens": tokens[0][:16],
    }


def run_worker(name: str, job: dict[str, Any], python: str) -> dict[str, Any]:
    """What a process finds of one runner, or why it found nothing (`absent`)."""
    with tempfile.TemporaryDirectory() as folder:
        task, output = Path(folder) / "job.json", Path(folder) / "found.json"
        task.write_text(json.dumps(job))
        command = [python, __file__, "--worker", name, str(task), str(output)]
        environment = os.environ | {"OMP_NUM_THREADS": str(job["threads"])}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            lines = done.stderr.strip().splitlines()
            return {"absent": lines[-1][:300] if lines else f"status {done.returncode}"}
        return json.loads(output.read_text())


def smollm2_prompt(path: Path) -> list[int]:
    """The first tokens of WikiText-2."""
    from transformers import AutoTokenizer

    from gqc.tools.models import wikitext2

    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return tokenizer(wikitext2()[:20000])["input_ids"][:PROMPT_TOKENS]


def print_table(found: dict[str, dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("", f"prefill of {PROMPT_TOKENS}, tokens/s", f"decode of {NEW_TOKENS}, tokens/s")
    for name, one in found.items():
        if "absent" in one:
            table.add_row(name, "left out", one["absent"])
        else:
            speeds = (one["prefill_tokens_per_s"], one["decode_tokens_per_s"])
            table.add_row(name, *(f"{speed:.1f}" for speed in speeds))
    Console(width=120).print(table)


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        name, task, output = sys.argv[2:]
        found = measured(name, json.loads(Path(task).read_text()))
        Path(output).write_text(json.dumps(found))
        return
    from machine import describe_machine

    from gqc.tools import models

    parser = argparse.ArgumentParser(description="tokens a second of SmolLM2 on the CPU")
    parser.add_argument("--runners", nargs="+", default=[*RUNNERS], choices=RUNNERS)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peer-python", default=sys.executable, help="one with llama-cpp-python")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    (path,) = models.fetch(models.SMOLLM2)
    job = {"path": str(path), "prompt": smollm2_prompt(path)}
    job |= {"threads": options.threads, "repeats": options.repeats}
    found = {}
    for name in options.runners:
        python = sys.executable if name.startswith("gqc") else options.peer_python
        found[name] = run_worker(name, job, python)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    machine = describe_machine() | {"threads": options.threads}
    machine["load_average"] = os.getloadavg()[0]
    document = {"machine": machine, "results": found}
    options.output.write_text(json.dumps(document, indent=1) + "\n")
    print_table(found)


if __name__ == "__main__":
    main()
