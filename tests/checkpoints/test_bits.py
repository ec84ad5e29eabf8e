"""Bit streams against loops over bits."""

from __future__ import annotations

import pytest
import torch
from checkpoints.packers import pack_bytes, pack_rows
from checkpoints.sample import codes_of

from gqc.checkpoints.bits import pack, pack_words, unpack


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("k", [1, 5, 8, 13, 32, 67])
def test_streams_are_dense(bits: int, k: int) -> None:
    codes = codes_of(bits, 3, k).to(torch.uint8)
    assert torch.equal(pack(codes, bits), pack_bytes(codes, bits))
    assert torch.equal(pack_words(codes, bits), pack_rows(codes, bits))
    assert torch.equal(unpack(pack(codes, bits), bits, k), codes)
    assert torch.equal(unpack(pack_words(codes, bits), bits, k), codes)


def test_signed_codes_are_in_twos_complement() -> None:
    codes = torch.tensor([[-4, -1, 0, 3]], dtype=torch.int8)
    assert pack(codes, 3).tolist() == pack_bytes(codes & 7, 3).tolist()


def test_leading_dimensions_stay_and_rows_need_not_be_contiguous() -> None:
    codes = codes_of(4, 6, 2, 3).to(torch.uint8).permute(2, 1, 0)
    packed = pack(codes, 4)
    assert packed.shape == (3, 2, 3)
    assert torch.equal(packed[1, 1], pack_bytes(codes[1, 1:], 4)[0])
