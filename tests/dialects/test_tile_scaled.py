"""What the tile operations on codes of narrow floats mean."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gqc.dialects.interpret import interpreter
from gqc.dialects.text import parse_ir
from gqc.dialects.tile import KernelOp
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.elements import ELEMENTS


def run(text: str, *arrays: Any) -> None:
    module = parse_ir(text)
    kernel = next(op for op in module.walk() if isinstance(op, KernelOp))
    run_kernel(interpreter(module, {}), kernel, arrays)


def decode(name: str, steps: str, bytes_: torch.Tensor, codes: int, result: str) -> torch.Tensor:
    """Values of bytes read as codes of a format, after further steps from %q to %r."""
    y = torch.empty(1, codes)
    count = bytes_.numel()
    run(
        f"""
    tile.kernel @decode(%b : memref<1x{count}xi8>, %y : memref<?x{codes}xf32>) tile<1, {codes}> {{
      %c0 = arith.constant 0 : index
      %t = tile.load %b[%c0, %c0] : memref<1x{count}xi8> -> vector<1x{count}xi8>
      %q = tile.bitcast %t : vector<1x{count}xi8> to vector<1x{codes}x{name}>
      {steps}
      %v = tile.cast %{"r" if steps else "q"} : vector<1x{codes}x{result}> to vector<1x{codes}xf32>
      tile.store %v, %y[%c0, %c0] : vector<1x{codes}xf32>, memref<?x{codes}xf32>
    }}
    """,
        bytes_.view(torch.int8)[None],
        y,
    )
    return y[0]


FLOATS = [name for name, element in ELEMENTS.items() if element.exponent]


def every_code(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """All codes of a format, and the bytes that hold them: one long number, low bits first."""
    element = ELEMENTS[name]
    codes = [*range(1 << element.bits)]
    number = sum(code << element.bits * i for i, code in enumerate(codes))
    packed = number.to_bytes(len(codes) * element.bits // 8, "little")
    return torch.tensor(codes), torch.tensor([*packed], dtype=torch.uint8)


@pytest.mark.parametrize("name", FLOATS)
def test_bytes_hold_codes_low_bits_first(name: str) -> None:
    codes, bytes_ = every_code(name)
    y = decode(name, "", bytes_, len(codes), name)
    expected = torch.tensor(ELEMENTS[name].values)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", FLOATS)
def test_codes_become_the_bytes_they_came_from(name: str) -> None:
    codes, bytes_ = every_code(name)
    shape, count = f"1x{len(bytes_)}xi8", len(bytes_)
    y = torch.empty(1, count, dtype=torch.int8)
    run(
        f"""
    tile.kernel @copy(%b : memref<{shape}>, %y : memref<?x{count}xi8>) tile<1, {count}> {{
      %c0 = arith.constant 0 : index
      %t = tile.load %b[%c0, %c0] : memref<{shape}> -> vector<{shape}>
      %q = tile.bitcast %t : vector<{shape}> to vector<1x{len(codes)}x{name}>
      %r = tile.bitcast %q : vector<1x{len(codes)}x{name}> to vector<{shape}>
      tile.store %r, %y[%c0, %c0] : vector<{shape}>, memref<?x{count}xi8>
    }}
    """,
        bytes_.view(torch.int8)[None],
        y,
    )
    assert torch.equal(y[0].view(torch.uint8), bytes_)


@pytest.mark.parametrize(
    ("name", "wider", "factor"),
    [
        ("f4E2M1FN", "f8E4M3FN", 2.0**-6),
        ("f6E2M3FN", "f8E4M3FN", 2.0**-6),
        ("f6E3M2FN", "f8E4M3FN", 2.0**-4),
        ("f4E2M1FN", "f6E3M2FN", 2.0**-2),
    ],
)
def test_wider_codes_have_the_same_values_but_for_a_power_of_two(
    name: str, wider: str, factor: float
) -> None:
    codes, bytes_ = every_code(name)
    shape = f"vector<1x{len(codes)}x"
    y = decode(
        name, f"%r = tile.widen %q : {shape}{name}> to {shape}{wider}>", bytes_, len(codes), wider
    )
    expected = torch.tensor(ELEMENTS[name].values) * factor
    assert torch.equal(y, expected)
    assert torch.equal(y.signbit(), expected.signbit())


def test_reshape_and_permute_move_elements() -> None:
    x, y = torch.arange(24.0).reshape(2, 3, 4), torch.empty(4, 6)
    run(
        """
    tile.kernel @move(%x : memref<2x3x4xf32>, %y : memref<?x6xf32>) tile<4, 6> {
      %c0 = arith.constant 0 : index
      %t = tile.load %x[%c0, %c0, %c0] : memref<2x3x4xf32> -> vector<2x3x4xf32>
      %p = tile.permute %t order = [2, 0, 1] : vector<2x3x4xf32> to vector<4x2x3xf32>
      %r = tile.reshape %p : vector<4x2x3xf32> to vector<4x6xf32>
      tile.store %r, %y[%c0, %c0] : vector<4x6xf32>, memref<?x6xf32>
    }
    """,
        x,
        y,
    )
    assert torch.equal(
        y,
        torch.tensor(
            [[float(12 * b + 4 * c + a) for b in range(2) for c in range(3)] for a in range(4)]
        ),
    )


@pytest.mark.parametrize(
    ("left", "right", "scale", "block"),
    [
        ("f4E2M1FN", "f4E2M1FN", "f8E8M0FNU", 32),
        ("f4E2M1FN", "f4E2M1FN", "f8E4M3FN", 16),
        ("f8E5M2", "f6E3M2FN", "f8E8M0FNU", 32),
    ],
)
def test_dot_scaled_multiplies_what_codes_and_scales_stand_for(
    left: str, right: str, scale: str, block: int
) -> None:
    """Two rows by three, 64 of K; scales whose products float32 holds exactly."""
    generator = torch.Generator().manual_seed(0)
    values, scales = {}, {}
    operands = []
    for name, rows in ((left, 2), (right, 3)):
        element = ELEMENTS[name]
        limit = torch.tensor(element.values, dtype=torch.float64)
        usable = (limit.isfinite() & (limit.abs() <= 8) & ((limit * 8) % 1 == 0)).nonzero()[:, 0]
        codes = usable[torch.randint(len(usable), (rows, 64), generator=generator)]
        values[rows] = limit[codes]
        exponent = torch.randint(-2, 3, (rows, 64 // block), generator=generator)
        scales[rows] = 2.0 ** exponent.double()
        dtype = {"f8E8M0FNU": torch.float8_e8m0fnu, "f8E4M3FN": torch.float8_e4m3fn}[scale]
        stream = sum(int(c) << element.bits * i for i, c in enumerate(codes.flatten()))
        packed = stream.to_bytes(rows * 8 * element.bits, "little")
        operands += [
            torch.tensor([*packed], dtype=torch.uint8).view(torch.int8).reshape(rows, -1),
            scales[rows].to(dtype),
        ]
    y = torch.empty(2, 3)
    k = {name: 8 * ELEMENTS[name].bits for name in (left, right)}
    s = 64 // block
    run(
        f"""
    tile.kernel @dot(%a : memref<?x{k[left]}xi8>, %as : memref<?x{s}x{scale}>,
        %b : memref<3x{k[right]}xi8>, %bs : memref<3x{s}x{scale}>,
        %y : memref<?x3xf32>) tile<2, 3> {{
      %c0 = arith.constant 0 : index
      %acc = tile.full 1.0 : vector<2x3xf32>
      %at = tile.load %a[%c0, %c0] : memref<?x{k[left]}xi8> -> vector<2x{k[left]}xi8>
      %aq = tile.bitcast %at : vector<2x{k[left]}xi8> to vector<2x64x{left}>
      %ast = tile.load %as[%c0, %c0] : memref<?x{s}x{scale}> -> vector<2x{s}x{scale}>
      %bt = tile.load %b[%c0, %c0] : memref<3x{k[right]}xi8> -> vector<3x{k[right]}xi8>
      %bq = tile.bitcast %bt : vector<3x{k[right]}xi8> to vector<3x64x{right}>
      %bst = tile.load %bs[%c0, %c0] : memref<3x{s}x{scale}> -> vector<3x{s}x{scale}>
      %bqt = tile.transpose %bq : vector<3x64x{right}> to vector<64x3x{right}>
      %d = tile.dot_scaled %acc, %aq, %ast, %bqt, %bst : (vector<2x3xf32>, vector<2x64x{left}>,
        vector<2x{s}x{scale}>, vector<64x3x{right}>, vector<3x{s}x{scale}>) -> vector<2x3xf32>
      tile.store %d, %y[%c0, %c0] : vector<2x3xf32>, memref<?x3xf32>
    }}
    """,
        *operands,
        y,
    )
    a, b = (values[n] * scales[n].repeat_interleave(block, 1) for n in (2, 3))
    assert torch.equal(y.double(), 1 + a @ b.T)
