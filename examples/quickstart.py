"""Two real models, compiled: a language model on its own grid, and an encoder at four widths.

`make demo` runs this. Everything it writes goes to demo-output/.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.syntax import Syntax
from rich.table import Table
from torch import Tensor, nn

import gqc
from gqc.schemes import preset
from gqc.tools import models
from gqc.tools.perplexity import perplexity, token_windows
from gqc.tools.similarity import embeddings, mean_cosine, sentence_batch

OUTPUT = Path("demo-output")
WINDOWS, CONTEXT = 16, 1024  # of WikiText-2, for perplexity
NEW_TOKENS = 48
QUESTION = "What is a compiler? Answer in two sentences."
SCHEMES = ("int8_g32", "int4_g128", "int3_g64", "int2_g32")
SENTENCES = 64

console = Console(width=None if sys.stdout.isatty() else 140)


# What is measured


def held_bytes(model: nn.Module) -> int:
    """Bytes of memory behind the parameters and buffers of a module, shared memory once."""
    tensors = [*model.parameters(), *model.buffers()]
    storages = [tensor.untyped_storage() for tensor in tensors]
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def answer(
    model: nn.Module, tokenizer: Any, question: str, new_tokens: int = NEW_TOKENS
) -> tuple[str, float]:
    """Greedy answer to a question, and new tokens per second (the prompt's time included)."""
    chat = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    start = time.perf_counter()
    ids = model.generate(**prompt, max_new_tokens=new_tokens, do_sample=False)  # type: ignore
    new = ids[0, prompt["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), len(new) / (time.perf_counter() - start)


# The parts of the demo


@dataclass
class Measured:
    """What one language model is measured by."""

    megabytes: float
    perplexity: float
    tokens_per_second: float
    text: str


def measure(name: str, model: nn.Module, tokenizer: Any, windows: Tensor) -> Measured:
    answer(model, tokenizer, QUESTION, new_tokens=2)  # warm up
    text, speed = answer(model, tokenizer, QUESTION)
    score = perplexity(model, track(windows, f"perplexity of {name}", console=console))
    return Measured(held_bytes(model) / 1e6, score, speed, text)


def language_model() -> None:
    """SmolLM2 before and after. Its weights lie on the int4 grid, so nothing may be lost."""
    console.rule("SmolLM2-135M, int4 in blocks of 32 with zero points, on this CPU")
    with console.status("loading SmolLM2-135M"):
        model, tokenizer = models.smollm2()
    windows = token_windows(tokenizer, models.wikitext2(), WINDOWS, CONTEXT)

    before = measure("fp32", model, tokenizer, windows)
    start = time.perf_counter()
    compiled = gqc.compile(model, scheme="int4_g32", target="cpu", dump_ir=OUTPUT / "smollm2")
    seconds = time.perf_counter() - start
    after = measure("int4_g32", compiled, tokenizer, windows)

    console.print(compiled.report())
    table = Table(title=f"before and after (compiled in {seconds:.0f} s)")
    for column in (
        "",
        "weights, MB",
        f"perplexity, {windows[:, 1:].numel()} tokens of WikiText-2",
        "tokens/s",
    ):
        table.add_column(column, justify="right" if column else "left")
    for name, m in (("torch fp32", before), ("gqc int4_g32", after)):
        row = (f"{m.megabytes:.1f}", f"{m.perplexity:.6f}", f"{m.tokens_per_second:.1f}")
        table.add_row(name, *row)
    console.print(table)
    console.print(f"[bold]{QUESTION}[/bold]\n{after.text}\n")
    if abs(after.perplexity / before.perplexity - 1) > 5e-5:
        raise SystemExit("the perplexities do not agree to 4 digits: this is a bug in gqc")
    console.print(f"IR after every pass, and every kernel: {OUTPUT / 'smollm2'}/\n")


@dataclass
class Quality:
    """What one scheme keeps of a model, and what it costs in bits per weight."""

    scheme: str
    cosine: float
    code_bits: float
    metadata_bits: float


def encoder() -> None:
    """MiniLM, full precision: what each scheme keeps of its sentence embeddings."""
    console.rule("MiniLM, four schemes")
    model, tokenizer = models.minilm()
    batch = sentence_batch(tokenizer, models.wikitext2(), SENTENCES)
    exact = embeddings(model, batch)
    results = []
    for scheme in track(SCHEMES, "compiling MiniLM", console=console):
        compiled = gqc.compile(model, example_inputs=batch, scheme=scheme, target="cpu")
        cosine = mean_cosine(embeddings(compiled, batch), exact)
        format_ = preset(scheme).type()
        code_bits = format_.format.bits
        metadata_bits = format_.bits_per_element((384, 384)) - code_bits
        results.append(Quality(scheme, cosine, code_bits, metadata_bits))

    table = Table(title=f"cosine to fp32, mean over {SENTENCES} sentences of WikiText-2")
    for column in ("scheme", "cosine", "bits per weight", "of these, scales and zero points"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for q in results:
        bits = (f"{q.code_bits + q.metadata_bits:.3f}", f"{q.metadata_bits:.3f}")
        table.add_row(q.scheme, f"{q.cosine:.5f}", *bits)
    console.print(table)
    console.print(f"plot: {plot(results, OUTPUT / 'minilm_schemes.png')}\n")


def plot(results: list[Quality], path: Path) -> Path:
    """Two panels: cosine to fp32, and bits per weight split into codes and metadata."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    names = [q.scheme for q in results]
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
    bars = left.bar(names, [q.cosine for q in results], color="#4477aa")
    left.bar_label(bars, fmt="%.4f", padding=2)
    left.set(title="MiniLM, cosine to fp32 (round to nearest)", ylim=(0, 1.1))
    codes = [q.code_bits for q in results]
    right.bar(names, codes, color="#bbbbbb", label="codes")
    metadata = right.bar(
        names,
        [q.metadata_bits for q in results],
        bottom=codes,
        color="#ee6677",
        label="scales and zero points",
    )
    right.bar_label(metadata, [f"+{q.metadata_bits:g}" for q in results], padding=2)
    right.set(title="bits per weight", ylim=(0, 10.5))
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=150)
    return path


def triton_kernel() -> None:
    """One kernel for Hopper, compiled here without a GPU."""
    console.rule("the same layers for sm_90: Triton, compiled offline")
    model, tokenizer = models.minilm()
    batch = dict(tokenizer(["one sentence"], return_tensors="pt"))
    scheme, dump = "int4_g128", OUTPUT / "minilm_sm_90"
    compiled = gqc.compile(
        model.bfloat16(), example_inputs=batch, scheme=scheme, target="sm_90", dump_ir=dump
    )
    kernel = compiled.kernels[0]
    console.print(Syntax(kernel.source, "python", theme="ansi_light"))
    built = kernel.artifacts
    matrix = ", ".join(f"{n}× {name}" for name, n in built.matrix_instructions.items())
    console.print(
        f"{kernel.name} for {built.target}, Triton {built.triton}: {built.registers} registers, "
        f"{built.spills} bytes spilled, {built.shared} bytes of shared memory, {matrix}"
    )
    console.print(f"all {len(compiled.kernels)} kernels, tile IR and source: {dump}/kernels/\n")


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    for asset in models.DEMO:
        models.fetch(asset)
    start = time.perf_counter()
    with torch.inference_mode():
        language_model()
        encoder()
        triton_kernel()
    console.print(f"done in {time.perf_counter() - start:.0f} s (downloads aside)")


if __name__ == "__main__":
    main()
