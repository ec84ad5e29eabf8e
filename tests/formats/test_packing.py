"""Codes into words and back: the order of bits is a file format, so it is written out here."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gqc.formats.packing import ORDERS, pack, planes_of, unpack, whole_words


def test_planes_are_the_binary_digits_of_a_width() -> None:
    assert {bits: [p.width for p in planes_of(bits)] for bits in range(1, 9)} == {
        1: [1], 2: [2], 3: [2, 1], 4: [4], 5: [4, 1], 6: [4, 2], 7: [4, 2, 1], 8: [8],
    }  # fmt: skip


def test_halves_are_one_plane_of_whole_groups() -> None:
    planes = {bits: planes_of(bits, "halves") for bits in range(1, 9)}
    groups = {bits: (plane.words, len(plane.codes)) for bits, (plane,) in planes.items()}
    assert groups == {
        1: (1, 32), 2: (1, 16), 3: (3, 32), 4: (1, 8), 5: (5, 32), 6: (3, 16), 7: (7, 32),
        8: (1, 4),
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


def test_halves_of_words_hold_five_codes_of_3_bits() -> None:
    """Pairs of codes (0, 1) to (8, 9) in the first word, and what is left of three words, their
    bits 15 and 31, is a bit each of the codes 30 and 31."""
    codes = torch.zeros(32, dtype=torch.int64)
    codes[:10] = torch.tensor([1, 7, 2, 6, 3, 5, 4, 4, 5, 3])
    codes[10], codes[29] = 6, 5
    codes[30], codes[31] = 0b101, 0b010
    low, high = 0o54321, 0o34567
    expected = [high << 16 | 1 << 15 | low, 1 << 31 | 6, 5 << 28 | 1 << 15]
    assert [word & 0xFFFF_FFFF for word in pack(codes, 3, "halves")[0].tolist()] == expected


@pytest.mark.parametrize("bits", range(1, 9))
def test_most_pairs_of_halves_come_out_with_one_shift_and_mask(bits: int) -> None:
    codes = torch.arange(whole_words(bits)) * 37 + 5 & (1 << bits) - 1
    words = [word & 0xFFFF_FFFF for word in pack(codes, bits, "halves")[0].tolist()]
    mask, fit = (1 << bits) - 1, 16 // bits
    pairs = [(w >> bits * i & mask, w >> 16 + bits * i & mask) for w in words for i in range(fit)]
    assert [code for pair in pairs for code in pair] == codes[: 2 * len(pairs)].tolist()


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_pieces_of_codes_fill_words(bits: int, order: str) -> None:
    """Every bit of a group's words is of one code, and every bit of a code has one place."""
    for plane in planes_of(bits, order):
        pieces = [p for pieces in plane.codes for p in pieces]
        places = sorted((p.word, p.shift + i) for p in pieces for i in range(p.width))
        assert places == [(word, bit) for word in range(plane.words) for bit in range(32)]
    for code in range(whole_words(bits)):
        pieces = [
            p for plane in planes_of(bits, order) for p in plane.codes[code % len(plane.codes)]
        ]
        assert [p.low + i for p in pieces for i in range(p.width)] == list(range(bits))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("bits", range(1, 9))
def test_whole_words_of_every_order(bits: int, order: str) -> None:
    assert max(len(plane.codes) for plane in planes_of(bits, order)) == whole_words(bits)


@settings(max_examples=100, deadline=None)
@given(
    order=st.sampled_from(list(ORDERS)),
    bits=st.integers(1, 8),
    signed=st.booleans(),
    rows=st.integers(1, 3),
    k=st.integers(1, 101),
    seed=st.integers(0, 2**32 - 1),
)
def test_unpack_undoes_pack(
    order: str, bits: int, signed: bool, rows: int, k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    low = -(1 << bits - 1) if signed else 0
    codes = torch.randint(low, low + (1 << bits), (rows, k), generator=generator)
    planes = pack(codes, bits, order)
    assert [p.shape for p in planes] == [(rows, p.words_of(k)) for p in planes_of(bits, order)]
    back = unpack(planes, bits, signed, order)
    assert back.dtype == (torch.int8 if signed else torch.uint8)
    assert torch.equal(back[:, :k].long(), codes)
    assert not back[:, k:].any(), "the last word is filled up with zero codes"
