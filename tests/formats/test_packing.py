"""Codes into words and back: the order of bits is a file format, so it is written out here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gqc.formats.packing import pack, planes_of, shifts_of, unpack, words_of


def test_planes_are_the_binary_digits_of_a_width() -> None:
    assert {bits: planes_of(bits) for bits in range(1, 9)} == {
        1: (1,), 2: (2,), 3: (2, 1), 4: (4,), 5: (4, 1), 6: (4, 2), 7: (4, 2, 1), 8: (8,),
    }  # fmt: skip


def test_even_codes_lie_in_the_low_half_of_a_word() -> None:
    """Codes 0..7 of 4 bits: 0 2 4 6 from bit 0 up, 1 3 5 7 from bit 16 up."""
    (words,) = pack(torch.arange(8), 4)
    assert words.dtype == torch.int32
    assert words.tolist() == [0x7531_6420]


@pytest.mark.parametrize(
    "bits, codes, planes",
    [
        (8, [0x11, 0x22, 0x33, 0x44], [[0x4422_3311]]),
        (2, [1, 2, 3], [[0x0002_000D]]),
        (1, [0, 1, 0, 1], [[0x0003_0000]]),
        # 3 bits: the low two in the first plane, the top one in the second.
        (3, [0b101, 0b010, 0b111], [[0x0002_000D], [0x0000_0003]]),
        # 5 bits: four and one. 6 bits: four and two.
        (5, [0b10011, 0b01000], [[0x0008_0003], [0x0000_0001]]),
        (6, [0b10_0011, 0b01_1000], [[0x0008_0003], [0x0001_0002]]),
    ],
)
def test_words_of_each_width(bits: int, codes: list[int], planes: list[list[int]]) -> None:
    assert [p.tolist() for p in pack(torch.tensor(codes), bits)] == planes


def test_a_word_with_its_top_bit_set_is_negative() -> None:
    assert [p.tolist() for p in pack(torch.full((8,), 15), 4)] == [[-1]]
    assert [p.tolist() for p in pack(torch.tensor([0, 0, 0, 0, 0, 0, 0, 8]), 4)] == [[-(2**31)]]


def test_pairs_come_out_with_one_shift_and_mask() -> None:
    """What kernels rely on: `(word >> b·i) & mask·0x00010001` is the pair of codes (2i, 2i + 1)."""
    codes = torch.tensor([3, 9, 14, 1, 0, 15, 7, 8])
    word = int(pack(codes, 4)[0]) & 0xFFFF_FFFF
    pairs = [(word >> 4 * i) & 0x000F_000F for i in range(4)]
    assert [(p & 0xFFFF, p >> 16) for p in pairs] == list(
        zip(codes[::2].tolist(), codes[1::2].tolist(), strict=True)
    )


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_quads_come_out_with_one_shift_and_mask(bits: int) -> None:
    """`(word >> b·i) & mask·0x01010101` is the four codes from 4i on, a byte each."""
    mask, codes = (1 << bits) - 1, torch.arange(32 // bits) * 37 + 5 & (1 << bits) - 1
    word = int(pack(codes, bits, "quads")[0]) & 0xFFFF_FFFF
    quads = [word >> bits * i & mask * 0x0101_0101 for i in range(8 // bits)]
    assert [*b"".join(quad.to_bytes(4, "little") for quad in quads)] == codes.tolist()


@pytest.mark.parametrize("width", [1, 2, 4, 8])
def test_the_codes_of_a_word_do_not_overlap(width: int) -> None:
    bits = sorted(shift + i for shift in shifts_of(width) for i in range(width))
    assert bits == list(range(32))


@settings(max_examples=60, deadline=None)
@given(
    bits=st.integers(1, 8),
    signed=st.booleans(),
    rows=st.integers(1, 3),
    k=st.integers(1, 101),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpack_undoes_pack(bits: int, signed: bool, rows: int, k: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = -(1 << bits - 1) if signed else 0
    codes = torch.randint(low, low + (1 << bits), (rows, k), generator=generator)
    planes = pack(codes, bits)
    assert [p.shape for p in planes] == [(rows, words_of(k, w)) for w in planes_of(bits)]
    back = unpack(planes, bits, signed)
    assert back.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(back[:, :k].long(), codes)
    assert not back[:, k:].any(), "the last word is filled up with zero codes"
