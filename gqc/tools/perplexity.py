"""Perplexity of a language model: for the demo, the tests and the benchmarks."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def token_windows(tokenizer: Any, text: str, windows: int, context: int) -> Tensor:
    """The first tokens of a text, int64 [windows, context]. Raises ValueError on too short a text.

    Counts on 8 characters a token at most, so as not to tokenize the rest.
    """
    ids = tokenizer(text[: 8 * windows * context])["input_ids"][: windows * context]
    if len(ids) < windows * context:
        raise ValueError(f"the text has {len(ids)} tokens, not {windows} times {context}")
    return torch.tensor(ids).view(windows, context)


@torch.inference_mode()
def perplexity(model: nn.Module, windows: Iterable[Tensor]) -> float:
    """exp of the mean negative log likelihood of each token given those before it in its window.

    Each of `windows` is int64 [context]; the first token of a window is not predicted.
    """
    loss, tokens = 0.0, 0
    for window in windows:
        logits = model(window[None]).logits[0, :-1]
        loss += nn.functional.cross_entropy(logits, window[1:], reduction="sum").item()
        tokens += len(window) - 1
    return math.exp(loss / tokens)
