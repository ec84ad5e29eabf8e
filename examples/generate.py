"""Ask a language model a question; the answer comes token by token.

    python examples/generate.py "What is a compiler?" [--model FILE.gguf] [--length 512]

Without a model it is SmolLM2-135M, Q4_1. The first token waits for a C++ compiler; `--plain` does
without one.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from transformers import AutoTokenizer

import gqc
from gqc.tools import models


def main() -> None:
    parser = argparse.ArgumentParser(description="ask a language model a question")
    parser.add_argument("question")
    parser.add_argument("--model", type=Path, help="a GGUF file (default: SmolLM2-135M)")
    parser.add_argument("--length", type=int, default=512, help="question and answer, in tokens")
    parser.add_argument("--plain", action="store_true", help="run torch's operators one by one")
    options = parser.parse_args()
    path = options.model or models.fetch(models.SMOLLM2)[0]
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    generator = gqc.generator(
        path, length=options.length, dtype=torch.bfloat16, inductor=not options.plain
    )
    chat = [{"role": "user", "content": options.question}]
    prompt = tokenizer.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]
    times = []
    for token in generator.generate(prompt, options.length - len(prompt)):
        times.append(time.perf_counter())
        print(tokenizer.decode([token], skip_special_tokens=True), end="", flush=True)
    if len(times) > 2:  # the second token waited for the compiler
        print(f"\n{(len(times) - 2) / (times[-1] - times[1]):.1f} tokens/s")


if __name__ == "__main__":
    main()
