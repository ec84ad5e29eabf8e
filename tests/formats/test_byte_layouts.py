"""Codes in bytes, and where their scales lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from xdsl.dialects.builtin import TensorType
from xdsl.utils.exceptions import VerifyException

from gqc.dialects.gq import LayoutAttr
from gqc.dialects.text import parse_ir
from gqc.dialects.torch_types import DTYPES
from gqc.formats.byte_layouts import SCALE_PLACES
from gqc.formats.elements import ELEMENTS

FORMATS = [
    "1x32 : f8E8M0FNU : f4E2M1FN",
    "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
    "1x32 : f8E8M0FNU : f6E2M3FN",
    "1x32 : f8E8M0FNU : f6E3M2FN",
    "1x32 : f8E8M0FNU : f8E4M3FN",
    "1x32 : f8E8M0FNU : f8E5M2",
]


@pytest.mark.parametrize("scales", SCALE_PLACES)
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize(("n", "k"), [(1, 32), (130, 160), (256, 512)])
def test_unpack_undoes_pack(block_scaled: Any, scales: str, format: str, n: int, k: int) -> None:
    weight, layout = block_scaled(format, n, k), LayoutAttr("bytes", scales=scales)
    parts = layout.row.pack(weight, 1)
    assert [(tuple(p.shape), p.dtype) for p in parts] == [
        (t.get_shape(), DTYPES[t.element_type])
        for t in layout.part_types(TensorType(weight.type, [n, k]))
    ]
    back = layout.row.unpack(parts, weight.type, (n, k))
    assert torch.equal(back.codes, weight.codes) and back.codes.dtype == weight.codes.dtype
    assert torch.equal(back.scale.view(torch.uint8), weight.scale.view(torch.uint8))
    assert (back.tensor_scale is None) == (weight.tensor_scale is None)
    if back.tensor_scale is not None:
        assert torch.equal(back.tensor_scale, weight.tensor_scale)


def test_the_even_code_lies_in_the_low_half(block_scaled: Any) -> None:
    weight = block_scaled(FORMATS[0], 3, 64)
    codes = LayoutAttr("bytes", scales="linear").row.pack(weight, 1)[0].view(torch.uint8)
    assert torch.equal(codes & 15, weight.codes[:, ::2])
    assert torch.equal(codes >> 4, weight.codes[:, 1::2])


@pytest.mark.parametrize("name", ["f6E2M3FN", "f6E3M2FN"])
def test_six_bits_lie_as_e4m3_of_the_same_values(block_scaled: Any, name: str) -> None:
    weight = block_scaled(f"1x32 : f8E8M0FNU : {name}", 2, 32)
    weight.codes = torch.arange(64, dtype=torch.uint8).reshape(2, 32)
    stored = LayoutAttr("bytes", scales="linear").row.pack(weight, 1)[0]
    values = torch.tensor(ELEMENTS[name].values).reshape(2, 32)
    assert torch.equal(stored.view(torch.float8_e4m3fn).float(), values)
    assert torch.equal(stored.view(torch.uint8) >> 7, weight.codes >> 5), "-0 stays -0"


@pytest.mark.parametrize(("rows", "blocks"), [(128, 4), (1, 1), (130, 5), (300, 12)])
def test_swizzled_scales_are_those_of_torchao(rows: int, blocks: int) -> None:
    from torchao.prototype.mx_formats.utils import to_blocked

    generator = torch.Generator().manual_seed(rows)
    scale = torch.randint(0, 255, (rows, blocks), generator=generator, dtype=torch.uint8)
    place = SCALE_PLACES["swizzle_32_4_4"]
    ours = place.place(scale.view(torch.float8_e8m0fnu))
    assert ours.shape == place.shape(rows, blocks)
    assert torch.equal(ours.view(torch.uint8).flatten(), to_blocked(scale).flatten())


@pytest.mark.parametrize(("rows", "blocks"), [(32, 8), (64, 24), (33, 3)])
def test_shuffled_scales_lie_as_the_formula_says(rows: int, blocks: int) -> None:
    """Tiles of 32×8; each lane's four, of two rows and two columns, are one word."""
    generator = torch.Generator().manual_seed(rows)
    scale = torch.randint(1, 255, (rows, blocks), generator=generator, dtype=torch.uint8)
    ours = SCALE_PLACES["shuffle_32_8"].place(scale.view(torch.float8_e8m0fnu))
    found = ours.view(torch.uint8)
    assert ours.shape == (-(-rows // 32), -(-blocks // 8), 256)
    for r in range(rows):
        for c in range(blocks):
            byte = 64 * (c % 4) + 4 * (r % 16) + 2 * (c % 8 // 4) + r % 32 // 16
            assert found[r // 32, c // 8, byte] == scale[r, c]
    assert found.count_nonzero() == rows * blocks


def test_rows_of_an_activation_are_dynamic() -> None:
    text = """
    func.func @f(%c : tensor<2x?x64xi8>, %s : tensor<?x1x2x256xf8E8M0FNU>) {
      %x = gq.unpack %c, %s layout <bytes, scales = swizzle_32_4_4>
        : tensor<2x?x64xi8>, tensor<?x1x2x256xf8E8M0FNU>
        -> tensor<2x?x128x!gq.block_scaled<1x1x32 : f8E8M0FNU : f4E2M1FN>>
      func.return
    }
    """
    parse_ir(text).verify()
    with pytest.raises(VerifyException, match=r"gq\.unpack C2: parts must be"):
        parse_ir(text.replace("?x1x2x256", "1x1x2x256")).verify()
