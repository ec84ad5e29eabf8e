"""Sentence embeddings of an encoder, and how near they stay: for the demo and the benchmarks."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def sentence_batch(tokenizer: object, text: str, sentences: int) -> dict[str, Tensor]:
    """The first long lines of a text, cut after 64 tokens: ids and attention mask."""
    lines = [line.strip() for line in text.splitlines() if len(line) > 200][:sentences]
    options = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    return dict(tokenizer(lines, **options))  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def embeddings(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Mean-pooled sentence embeddings, [sentences, hidden]."""
    states = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1)


def mean_cosine(found: Tensor, exact: Tensor) -> float:
    """Mean over sentences of the cosine between two embeddings [sentences, hidden]."""
    return nn.functional.cosine_similarity(found, exact).mean().item()
