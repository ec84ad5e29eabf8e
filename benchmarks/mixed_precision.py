"""Accuracy at equal bits: schemes that `gqc.search` chose for each layer, and one for all.

MiniLM by the cosine of its sentence embeddings to fp32, over 64 sentences; SmolLM2-135M by
perplexity, over 4 windows of 256 tokens. Both are calibrated on other text: 8 sentences, 64 tokens.
Weights are dequantized and multiplied by torch. Writes the results as JSON.

    python benchmarks/mixed_precision.py --models minilm --bits 3.5 4.25
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import nn

import gqc
from gqc.checkpoints.weights import dense
from gqc.schemes import preset
from gqc.tools import models
from gqc.tools.perplexity import perplexity, token_windows
from gqc.tools.similarity import embeddings, mean_cosine, sentence_batch

RESULTS = Path(__file__).parent / "results" / "mixed_precision.json"

Case = tuple[nn.Module, Any, Callable[[nn.Module], float]]
"""A model, an input to calibrate on, and its score."""


def minilm() -> Case:
    model, tokenizer = models.minilm()
    batch = sentence_batch(tokenizer, models.wikitext2(), 72)
    scored, calibration = (
        {k: x[rows] for k, x in batch.items()} for rows in (slice(64), slice(64, 72))
    )
    exact = embeddings(model, scored)
    return model, calibration, lambda changed: mean_cosine(embeddings(changed, scored), exact)


def smollm2() -> Case:
    model, tokenizer = models.smollm2()
    text = models.wikitext2()
    windows = token_windows(tokenizer, text, windows=4, context=256)
    calibration = token_windows(tokenizer, text[len(text) // 3 :], windows=1, context=64)
    return model, calibration, lambda changed: perplexity(changed, windows)


MODELS = {
    "minilm": (minilm, ("int2_g32", "int3_g64", "int4_g128", "int4_g64", "int8_g64")),
    "smollm2": (smollm2, ("int2_g32", "int3_g64", "int4_g64", "int8_g64")),
}
"""Models with the candidates of the search; 128 does not divide most of SmolLM2's K."""


def dequantized(model: nn.Module, scheme: Any) -> nn.Module:
    """A copy that has the weights which the codes stand for."""
    source, new = gqc.quantize(model, scheme=scheme), copy.deepcopy(model)
    for name, parameter in new.named_parameters():
        parameter.data = dense(source.read(name))
    return new


def measure(name: str, budgets: list[float], console: Console) -> list[dict[str, Any]]:
    """Scores of one scheme for all layers, and of what is found for each budget."""
    make, candidates = MODELS[name]
    model, calibration, score = make()
    rows: list[dict[str, Any]] = [{"scheme": "fp32", "bits": 32.0, "score": score(model)}]
    for scheme in candidates:
        bits = preset(scheme).type().bits_per_element((64, 256))
        rows.append({"scheme": scheme, "bits": bits, "score": score(dequantized(model, scheme))})
    for budget in budgets:
        start = time.perf_counter()
        found = gqc.search(model, [calibration], budget_bits=budget, candidates=candidates)
        seconds = time.perf_counter() - start
        scored = score(dequantized(model, found))
        rows.append(
            {"scheme": "mixed", "bits": found.bits, "score": scored, "search_seconds": seconds}
        )
    table = Table("scheme", "bits/weight", "score", title=name)
    for row in rows:
        table.add_row(row["scheme"], f"{row['bits']:.3f}", f"{row['score']:.4f}")
    console.print(table)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="mixed precision beside one scheme")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--bits", nargs="+", type=float, default=[3.5, 4.0, 4.25, 4.5])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.manual_seed(0)
    results = {name: measure(name, options.bits, Console()) for name in options.models}
    text = json.dumps({"machine": describe_machine(), "results": results}, indent=2)
    options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
