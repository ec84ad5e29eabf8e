"""Layouts: where each part lies in memory, and that nothing is lost on the way."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import TensorType

from gqc.dialects.gq import LayoutAttr
from gqc.dialects.torch_types import DTYPES
from gqc.formats.layouts import LAYOUTS
from gqc.formats.packing import pack

FORMATS = [
    "1x16 : f16 : ui1, zero = f16, zero_mode = original",
    "1x32 : f32 : si2",
    "1x32 : bf16 : ui2, zero = ui2, zero_mode = quantized",
    "1x16 : f16 : ui3, zero = ui3, zero_mode = quantized",
    "1x? : f16 : si3",
    "1x32 : f16 : ui4, zero = bf16, zero_mode = rescale",
    "1x? : f16 : ui4, zero = ui4, zero_mode = quantized",
    "1x16 : bf16 : si8",
    "1x16 : f16 : ui8, zero = ui8, zero_mode = quantized",
    "1x32 : f8E8M0FNU : f6E2M3FN",
    "1x32 : f8E8M0FNU : f8E5M2",
    "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    "1x16 : f16 : ui3, zero = ui3, zero_mode = quantized, global = f32",
]
KINDS = [("k_words", 1), ("lane_words", 64), ("lane_words", 32), ("lane_quads", 32)]


def test_every_layout_is_here() -> None:
    assert {kind for kind, _ in KINDS} == set(LAYOUTS)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    format=st.sampled_from(FORMATS),
    n=st.integers(1, 130),
    blocks=st.integers(1, 4),
)
def test_unpack_undoes_pack(
    block_scaled: Any, kind: tuple[str, int], format: str, n: int, blocks: int
) -> None:
    name, lanes = kind
    weight = block_scaled(format, n, 32 * blocks)
    parts = LAYOUTS[name].pack(weight, lanes)
    expected = LayoutAttr(name, lanes).part_types(TensorType(weight.type, [n, 32 * blocks]))
    assert [(tuple(p.shape), p.dtype) for p in parts] == [
        (t.get_shape(), DTYPES[t.element_type]) for t in expected
    ]
    assert all(p.is_contiguous() for p in parts)

    back = LAYOUTS[name].unpack(parts, weight.type, (n, 32 * blocks))
    assert torch.equal(back.codes, weight.codes) and back.codes.dtype == weight.codes.dtype
    assert torch.equal(back.scale.float(), weight.scale.float())
    if weight.zero is None:
        assert back.zero is None
    else:
        assert back.zero is not None and torch.equal(back.zero, weight.zero)
    assert (back.tensor_scale is None) == (weight.tensor_scale is None)
    torch.testing.assert_close(
        back.dequantize(), weight.dequantize(), rtol=0, atol=0, equal_nan=True
    )


def test_words_along_k(block_scaled: Any) -> None:
    """`k_words`: words of a row side by side; scales and zero points [K/B, N]."""
    weight = block_scaled("1x32 : f16 : ui4, zero = ui4, zero_mode = quantized", 24, 64)
    words, scale, zero = LAYOUTS["k_words"].pack(weight, 1)
    assert words.shape == (24, 8)
    assert torch.equal(words[5], pack(weight.codes[5], 4)[0])
    assert torch.equal(scale, weight.scale.T)
    assert zero.shape == (2, 3)
    assert torch.equal(zero[1], pack(weight.zero[:, 1], 4)[0])


def test_rows_are_lanes(block_scaled: Any) -> None:
    """`lane_words`: element [p, w, l] is word w of row 64·p + l; rows past N are zero."""
    weight = block_scaled("1x32 : f16 : ui4, zero = ui4, zero_mode = quantized", 70, 64)
    words, scale, zero = LAYOUTS["lane_words"].pack(weight, 64)
    assert words.shape == (2, 8, 64)
    assert torch.equal(words[1, :, 5], pack(weight.codes[69], 4)[0])
    assert torch.equal(scale[1, :, 5], weight.scale[69])
    assert not words[1, :, 6:].any() and not scale[1, :, 6:].any()
    assert zero.shape == (2, 2, 8)
    assert torch.equal(zero[0, 1], pack(weight.zero[:64, 1], 4)[0])


@pytest.mark.parametrize("element, least", [("si4", -8), ("si8", -128), ("si3", -4), ("ui8", 0)])
def test_quads_are_unsigned(block_scaled: Any, element: str, least: int) -> None:
    """`lane_quads`: words hold what codes are above the element's least, in the order `quads`."""
    zero = "" if least else f", zero = {element}, zero_mode = quantized"
    weight = block_scaled(f"1x32 : f16 : {element}{zero}", 40, 64)
    planes = LAYOUTS["lane_quads"].pack(weight, 32)
    expected = pack(weight.codes[35].int() - least, weight.type.format.bits, "quads")
    for ours, theirs in zip(planes, expected, strict=False):
        assert torch.equal(ours[1, :, 3], theirs)


@pytest.mark.parametrize("kind, lanes", KINDS)
def test_a_ragged_k_is_filled_up(block_scaled: Any, kind: str, lanes: int) -> None:
    """48 codes of 3 bits: 3 words of one plane, 2 (not 1.5) of the other; or 3 for each 32."""
    weight = block_scaled("1x16 : f16 : ui3, zero = f16, zero_mode = rescale", 32, 48)
    layout = LAYOUTS[kind]
    codes = zip(layout.parts(weight.type), layout.pack(weight, lanes), strict=True)
    words = [array.numel() // max(32, lanes) for part, array in codes if part.kind == "codes"]
    assert words == ([6] if kind == "lane_words" else [3, 2])
    back = LAYOUTS[kind].unpack(LAYOUTS[kind].pack(weight, lanes), weight.type, (32, 48))
    assert torch.equal(back.codes, weight.codes)


@pytest.mark.parametrize("kind, lanes", KINDS)
def test_a_weight_is_packed_in_slices_of_rows(
    block_scaled: Any, monkeypatch: pytest.MonkeyPatch, kind: str, lanes: int
) -> None:
    weight = block_scaled("1x16 : f16 : ui3, zero = ui3, zero_mode = quantized", 70, 48)
    whole = LAYOUTS[kind].pack(weight, lanes)
    sizes: list[int] = []

    def recorded(codes: torch.Tensor, bits: int, order: str = "pairs") -> list[torch.Tensor]:
        sizes.append(len(codes))
        return pack(codes, bits, order)

    monkeypatch.setattr("gqc.formats.packing.SLICE", 48 * 30)
    monkeypatch.setattr("gqc.formats.packing.pack", recorded)
    for part, same in zip(LAYOUTS[kind].pack(weight, lanes), whole, strict=True):
        assert torch.equal(part, same)
    assert sizes[:3] == [30, 30, 10], "and then the zero points, which are few"


def test_parts_in_order(block_scaled: Any) -> None:
    """Planes of codes, scale, zero points: as they are, or in planes of their own."""
    formats = {
        "1x16 : f16 : si4": ["codes", "scale"],
        "1x16 : f16 : ui4, zero = f16, zero_mode = original": ["codes", "scale", "zero"],
        "1x16 : f16 : ui3, zero = ui3, zero_mode = quantized": [
            "codes2", "codes1", "scale", "zero2", "zero1"
        ],
        "1x16 : f8E4M3FN : f4E2M1FN, global = f32": ["codes", "scale", "tensor_scale"],
        "1x16 : f16 : ui4, zero = f16, zero_mode = original, global = f32": [
            "codes", "scale", "zero", "tensor_scale"
        ],
    }  # fmt: skip
    for format, names in formats.items():
        parts = LAYOUTS["k_words"].parts(block_scaled(format, 4, 16).type)
        assert [p.kind + p.suffix for p in parts] == names
