"""The arena: packed weights side by side, each a tensor of its own."""

from __future__ import annotations

import gc
import io
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn

import gqc
from gqc.runtime.arena import BLOCK, LINE, Arena


def mapped(address: int) -> bool:
    """Whether the process has memory at an address."""
    spans = (
        line.split()[0].split("-") for line in Path("/proc/self/maps").read_text().splitlines()
    )
    return any(int(first, 16) <= address < int(end, 16) for first, end in spans)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.uint8])
def test_tensors_are_kept_as_they_are(dtype: torch.dtype) -> None:
    arena = Arena()
    tensors = [torch.arange(n).reshape(-1, 3).to(dtype) for n in (3, 300, 9)]
    tensors.append(tensors[1].t())
    kept = [arena.keep(tensor) for tensor in tensors]
    for tensor, copy in zip(tensors, kept, strict=True):
        assert copy.dtype == dtype and torch.equal(copy, tensor)
        assert copy.is_contiguous() and copy.data_ptr() % LINE == 0
    steps = [b.data_ptr() - a.data_ptr() for a, b in pairwise(kept)]
    assert steps == [-(-t.nbytes // LINE) * LINE for t in kept[:-1]]


def test_what_does_not_fit_begins_a_block() -> None:
    arena = Arena()
    first = arena.keep(torch.ones(8))
    large = arena.keep(torch.full((BLOCK // 4 + 1,), 2.0))
    after = arena.keep(torch.full((8,), 3.0))
    assert first.sum() == 8 and large[-1] == 2 and after.sum() == 24


def test_a_block_goes_with_its_last_tensor() -> None:
    arena = Arena()
    tensors = [arena.keep(torch.ones(1024)) for _ in range(2)]
    address = tensors[0].data_ptr()
    del arena, tensors[0]
    gc.collect()
    assert mapped(address)
    del tensors
    gc.collect()
    assert not mapped(address)


def test_nothing_and_other_devices_are_left() -> None:
    for tensor in (torch.empty(0), torch.empty(4, device="meta")):
        assert Arena().keep(tensor) is tensor


def test_a_layer_keeps_its_weight_in_one_and_saves_no_more_than_it() -> None:
    layer = gqc.compile(nn.Linear(256, 64), scheme="int4_g32", target="cpu")
    codes, scale, *_ = parts = [*layer.buffers()]
    assert scale.data_ptr() == codes.data_ptr() + codes.nbytes
    file = io.BytesIO()
    torch.save([*parts], file)
    assert file.tell() < 2 * sum(part.nbytes for part in parts)
