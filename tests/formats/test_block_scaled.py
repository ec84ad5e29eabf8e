"""Block-scaled tensors: what they stand for, and what they cost."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from xdsl.dialects.builtin import DYNAMIC_INDEX, IntegerType, Signedness, bf16, f16

from gqc.dialects.gq import BlockScaledType
from gqc.formats.elements import ELEMENTS

UI4 = IntegerType(4, Signedness.UNSIGNED)


def spread(part: torch.Tensor, times: int) -> np.ndarray:
    return np.repeat(part.double().numpy(), times, axis=1)


@pytest.mark.parametrize(
    "format, formula",
    [
        ("1x16 : f16 : si4", lambda q, s, z: q * s),
        ("1x16 : f16 : ui4, zero = f16, zero_mode = original", lambda q, s, z: (q - z) * s),
        ("1x16 : bf16 : ui4, zero = f32, zero_mode = rescale", lambda q, s, z: q * s + z),
        ("1x16 : f32 : ui3, zero = ui3, zero_mode = quantized", lambda q, s, z: (q - z) * s),
    ],
)
def test_each_zero_mode_is_its_formula(block_scaled: Any, format: str, formula: Any) -> None:
    weight = block_scaled(format, 6, 48)
    q, s = weight.codes.double().numpy(), spread(weight.scale, 16)
    z = spread(weight.zero, 16) if weight.zero is not None else None
    dequantized = weight.dequantize(torch.float64)
    assert dequantized.dtype == torch.float64
    np.testing.assert_array_equal(dequantized.numpy(), formula(q, s, z))
    # In float32 unless told; the roundings are those of q − z, of the product, and of the sum.
    assert weight.dequantize().dtype == torch.float32
    torch.testing.assert_close(weight.dequantize().double(), dequantized, rtol=3e-7, atol=3e-7)


def test_float_codes_are_bit_patterns(block_scaled: Any) -> None:
    weight = block_scaled("1x32 : f8E8M0FNU : f4E2M1FN", 4, 64)
    table = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    expected = table[weight.codes.numpy()] * np.repeat(weight.scale.float().numpy(), 32, axis=1)
    np.testing.assert_array_equal(weight.dequantize(torch.float64).numpy(), expected)


def test_the_tensor_scale_multiplies(block_scaled: Any) -> None:
    weight = block_scaled("1x16 : f8E4M3FN : f4E2M1FN, global = f32", 4, 32)
    whole = weight.dequantize(torch.float64)
    weight.tensor_scale = torch.tensor(1.0)
    assert torch.equal(whole, weight.dequantize(torch.float64) * 0.375)


def test_blocks_of_several_rows(block_scaled: Any) -> None:
    weight = block_scaled("2x16 : f32 : si8", 4, 32)
    assert weight.scale.shape == (2, 2)
    expected = weight.codes[3, 17].double() * weight.scale[1, 1].double()
    assert weight.dequantize(torch.float64)[3, 17] == expected


def test_one_scale_for_a_whole_row_or_tensor(block_scaled: Any) -> None:
    assert block_scaled("1x? : f16 : si8", 4, 48).scale.shape == (4, 1)
    assert block_scaled("?x? : f16 : si8", 4, 48).scale.shape == (1, 1)


@pytest.mark.parametrize(
    "format, sizes",
    [
        ("1x16 : f16 : ui4, zero = ui4, zero_mode = quantized", [3, 3, 2]),
        ("2x16 : f32 : si8", [2, 2, 2, 2]),
        ("?x16 : f32 : si8", [8]),
        ("1x16 : f8E4M3FN : f4E2M1FN, global = f32", [3, 3, 2]),
    ],
)
def test_slices_of_rows(
    block_scaled: Any, monkeypatch: pytest.MonkeyPatch, format: str, sizes: list[int]
) -> None:
    monkeypatch.setattr("gqc.formats.packing.SLICE", 32 * 3)
    weight = block_scaled(format, 8, 32)
    slices = list(weight.slices())
    assert [len(part.codes) for _, part in slices] == sizes
    whole = weight.dequantize()
    for rows, part in slices:
        assert torch.equal(part.dequantize(), whole[rows])


@pytest.mark.parametrize(
    "type_, shape, bits",
    [
        # 4 + 16/128, and with a 4-bit zero point 4 + 20/128.
        (BlockScaledType([1, 128], f16, UI4), (64, 128), 4.125),
        (BlockScaledType([1, 128], f16, UI4, UI4, "quantized"), (64, 128), 4.15625),
        (BlockScaledType([1, 32], f16, UI4, f16, "rescale"), (64, 128), 5.0),
        (BlockScaledType([1, 16], bf16, UI4, f16, "original"), (64, 128), 6.0),
        # A whole row shares a scale, here among 256; a block of rows and columns, among 1024.
        (BlockScaledType([1, DYNAMIC_INDEX], f16, UI4), (64, 256), 4.0625),
        (BlockScaledType([32, 32], f16, UI4), (64, 256), 4.015625),
    ],
)
def test_bits_per_element(type_: BlockScaledType, shape: tuple[int, int], bits: float) -> None:
    assert type_.bits_per_element(shape) == bits


@pytest.mark.parametrize(
    "format, bits",
    [
        ("1x32 : f8E8M0FNU : f4E2M1FN", 4.25),
        ("1x32 : f8E8M0FNU : f6E3M2FN", 6.25),
        ("1x16 : f8E4M3FN : f4E2M1FN, global = f32", 4.5),
    ],
)
def test_bits_per_element_of_mx_and_nvfp4(block_scaled: Any, format: str, bits: float) -> None:
    assert block_scaled(format, 64, 128).type.bits_per_element((64, 128)) == bits


def test_packed_bytes_are_what_the_bits_say(block_scaled: Any) -> None:
    """Where nothing is padded, storage is exactly bits_per_element."""
    from gqc.formats.layouts import LAYOUTS

    for name in [n for n in ELEMENTS if ELEMENTS[n].is_integer]:
        weight = block_scaled(f"1x32 : f16 : {name}", 64, 128)
        parts = LAYOUTS["k_words"].pack(weight, 1)
        stored = 8 * sum(p.numel() * p.element_size() for p in parts)
        assert stored == 64 * 128 * weight.type.bits_per_element((64, 128)), name


@pytest.mark.parametrize(
    "format", ["1x16 : f16 : ui4, zero = f16, zero_mode = rescale", "1x16 : f8E4M3FN : f4E2M1FN"]
)
def test_rows_are_selected_whole(block_scaled: Any, format: str) -> None:
    weight, order = block_scaled(format, 6, 48), torch.tensor([5, 3, 1, 0, 2, 4])
    moved = weight.index_select(0, order)
    assert moved.type == weight.type
    assert torch.equal(moved.dequantize(), weight.dequantize()[order])
    with pytest.raises(ValueError, match="extend along dimension 1"):
        weight.index_select(1, torch.arange(48))
