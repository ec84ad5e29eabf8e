"""What the gq and tile operations mean, where a whole compilation would not show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gqc.dialects.interpret import interpreter, run
from gqc.dialects.text import parse_ir
from gqc.dialects.tile import KernelOp
from gqc.dialects.tile_interpreter import run_kernel
from gqc.formats.elements import ELEMENTS
from gqc.formats.packing import pack


def kernel(text: str) -> Callable[..., None]:
    """A function that runs a kernel, all programs of its grid, on its arguments."""
    module = parse_ir(text)
    (op,) = (op for op in module.ops if isinstance(op, KernelOp))
    return lambda *arrays: run_kernel(interpreter(module, {}), op, arrays)


def test_loads_past_the_end_read_zero_and_stores_are_dropped() -> None:
    """5 rows in tiles of 4, 6 columns in tiles of 4: the last tiles hang over."""
    copy = kernel("""
    tile.kernel @copy(%x : memref<?x6xf32>, %y : memref<?x6xf32>) tile<4, 4> {
      %c4 = arith.constant 4 : index
      %i = tile.program_id 0
      %j = tile.program_id 1
      %m = arith.muli %i, %c4 : index
      %n = arith.muli %j, %c4 : index
      %t = tile.load %x[%m, %n] : memref<?x6xf32> -> vector<4x4xf32>
      %s = tile.sum %t axis = 1 : vector<4x4xf32> to vector<4x1xf32>
      %b = tile.broadcast %s : vector<4x1xf32> to vector<4x4xf32>
      tile.store %b, %y[%m, %n] : vector<4x4xf32>, memref<?x6xf32>
    }
    """)
    x, y = torch.randn(5, 6), torch.full((5, 6), float("nan"))
    copy(x, y)
    torch.testing.assert_close(y[:, :4], x[:, :4].sum(1, keepdim=True).expand(5, 4))
    torch.testing.assert_close(y[:, 4:], x[:, 4:].sum(1, keepdim=True).expand(5, 2))


def test_a_tile_of_lower_rank_is_read_at_one_place() -> None:
    pick = kernel("""
    tile.kernel @pick(%x : memref<3x2x4xf32>, %y : memref<?x4xf32>) tile<2, 4> {
      %c0 = arith.constant 0 : index
      %c2 = arith.constant 2 : index
      %t = tile.load %x[%c2, %c0, %c0] : memref<3x2x4xf32> -> vector<2x4xf32>
      tile.store %t, %y[%c0, %c0] : vector<2x4xf32>, memref<?x4xf32>
    }
    """)
    x, y = torch.randn(3, 2, 4), torch.empty(2, 4)
    pick(x, y)
    assert torch.equal(y, x[2])


def test_parts_are_added_before_what_comes_after() -> None:
    """Three programs of two columns of x each, and one thing more that is done once: a factor."""
    total = kernel("""
    tile.kernel @total(%x : memref<?x6xf32>, %y : memref<?x1xf32>) tile<2, 1> {
      %c0 = arith.constant 0 : index
      %c2 = arith.constant 2 : index
      %pid_m = tile.program_id 0
      %m = arith.muli %pid_m, %c2 : index
      %part = tile.program_id 2
      %k = arith.muli %part, %c2 : index
      %t = tile.load %x[%m, %k] : memref<?x6xf32> -> vector<2x2xf32>
      %s = tile.sum %t axis = 1 : vector<2x2xf32> to vector<2x1xf32>
      %all = tile.add_parts %s parts = 3 : vector<2x1xf32>
      %square = arith.mulf %all, %all : vector<2x1xf32>
      tile.store %square, %y[%m, %c0] : vector<2x1xf32>, memref<?x1xf32>
    }
    """)
    x, y = torch.arange(30.0).reshape(5, 6), torch.full((5, 1), float("nan"))
    total(x, y)
    assert torch.equal(y, x.sum(1, keepdim=True) ** 2)


@pytest.mark.parametrize("name", ELEMENTS)
@pytest.mark.parametrize("axis, order", [(0, "pairs"), (1, "pairs"), (0, "halves")])
def test_unpack_and_cast_give_the_value_of_every_code(name: str, axis: int, order: str) -> None:
    element, count = ELEMENTS[name], 256
    kind = f"!gq.{name}" if element.table else name
    codes = torch.arange(count) % (1 << element.bits)
    planes = [p[:, None] if axis == 0 else p[None] for p in pack(codes, element.bits, order)]
    rank = [(p.shape[0], p.shape[1]) for p in planes]
    shape = (count, 1) if axis == 0 else (1, count)
    loads = "\n".join(
        f"%t{i} = tile.load %w{i}[%c0, %c0] : memref<{r}x{c}xi32> -> vector<{r}x{c}xi32>"
        for i, (r, c) in enumerate(rank)
    )
    names = ", ".join(f"%t{i}" for i in range(len(planes)))
    types = ", ".join(f"vector<{r}x{c}xi32>" for r, c in rank)
    arguments = "".join(f"%w{i} : memref<{r}x{c}xi32>, " for i, (r, c) in enumerate(rank))
    decode = kernel(f"""
    tile.kernel @decode({arguments}%y : memref<?x{shape[1]}xf32>) tile<{shape[0]}, {shape[1]}> {{
      %c0 = arith.constant 0 : index
      {loads}
      %q = tile.unpack {names} axis = {axis} order = "{order}"
        : ({types}) -> vector<{shape[0]}x{shape[1]}x{kind}>
      %v = tile.cast %q : vector<{shape[0]}x{shape[1]}x{kind}> to vector<{shape[0]}x{shape[1]}xf32>
      tile.store %v, %y[%c0, %c0] : vector<{shape[0]}x{shape[1]}xf32>, memref<?x{shape[1]}xf32>
    }}
    """)
    y = torch.empty(shape)
    decode(*planes, y)
    expected = torch.tensor(element.values)[codes].reshape(shape)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)


def test_a_scale_of_e8m0_is_a_power_of_two() -> None:
    """Every byte; 0 is a subnormal of f32, 255 NaN, and what is read past the end 2^-127."""
    decode = kernel("""
    tile.kernel @decode(%s : memref<256xf8E8M0FNU>, %y : memref<?x260xf32>) tile<1, 260> {
      %c0 = arith.constant 0 : index
      %t = tile.load %s[%c0] : memref<256xf8E8M0FNU> -> vector<260xf8E8M0FNU>
      %f = tile.cast %t : vector<260xf8E8M0FNU> to vector<260xf32>
      %b = tile.broadcast %f : vector<260xf32> to vector<1x260xf32>
      tile.store %b, %y[%c0, %c0] : vector<1x260xf32>, memref<?x260xf32>
    }
    """)
    y = torch.empty(1, 260)
    decode(torch.arange(256, dtype=torch.uint8).view(torch.float8_e8m0fnu), y)
    exponents = [*range(-127, 128), torch.nan, *[-127] * 4]
    expected = torch.tensor([[2.0**e for e in exponents]], dtype=torch.float64)
    torch.testing.assert_close(y.double(), expected, rtol=0, atol=0, equal_nan=True)


def test_repeat_and_broadcast_do_different_things() -> None:
    spread = kernel("""
    tile.kernel @spread(%s : memref<2x2xf32>, %b : memref<4xf32>, %y : memref<?x4xf32>) tile<2, 4> {
      %c0 = arith.constant 0 : index
      %t = tile.load %s[%c0, %c0] : memref<2x2xf32> -> vector<2x2xf32>
      %r = tile.repeat %t axis = 1 times = 2 : vector<2x2xf32> to vector<2x4xf32>
      %v = tile.load %b[%c0] : memref<4xf32> -> vector<4xf32>
      %w = tile.broadcast %v : vector<4xf32> to vector<2x4xf32>
      %a = arith.addf %r, %w : vector<2x4xf32>
      tile.store %a, %y[%c0, %c0] : vector<2x4xf32>, memref<?x4xf32>
    }
    """)
    y = torch.empty(2, 4)
    spread(torch.tensor([[1.0, 2], [3, 4]]), torch.tensor([10.0, 20, 30, 40]), y)
    assert y.tolist() == [[11, 21, 32, 42], [13, 23, 34, 44]]


def test_dot_multiplies_and_adds_in_f32() -> None:
    """2 + 2⁻¹² is no bfloat16: neither product nor sum may be rounded to it."""
    dot = kernel("""
    tile.kernel @dot(%a : memref<1x2xbf16>, %b : memref<2x1xbf16>, %y : memref<?x1xf32>) tile<1, 1> {
      %c0 = arith.constant 0 : index
      %acc = tile.full 1.0 : vector<1x1xf32>
      %l = tile.load %a[%c0, %c0] : memref<1x2xbf16> -> vector<1x2xbf16>
      %r = tile.load %b[%c0, %c0] : memref<2x1xbf16> -> vector<2x1xbf16>
      %d = tile.dot %acc, %l, %r : vector<1x2xbf16>, vector<2x1xbf16> -> vector<1x1xf32>
      tile.store %d, %y[%c0, %c0] : vector<1x1xf32>, memref<?x1xf32>
    }
    """)  # noqa: E501
    y = torch.empty(1, 1)
    a = torch.tensor([[1.0, 2.0**-12]], dtype=torch.bfloat16)
    dot(a, torch.ones(2, 1, dtype=torch.bfloat16), y)
    assert y.item() == 2 + 2.0**-12


LAUNCH = """
func.func @forward(%x : tensor<?x?x4xf32>) -> tensor<?x?x4xf32> {
  %p = gq.weight @none : tensor<1xi32>
  %y = gq.launch [@few, @more, @many] rows [2, 4, -1] on (%x : tensor<?x?x4xf32>)
    weights (%p : tensor<1xi32>) -> tensor<?x?x4xf32>
  func.return %y : tensor<?x?x4xf32>
}
""" + "".join(
    f"""
tile.kernel @{name}(%x : memref<?x4xf32>, %p : memref<1xi32>, %y : memref<?x4xf32>) tile<1, 4> {{
  %c0 = arith.constant 0 : index
  %i = tile.program_id 0
  %t = tile.full {value}.0 : vector<1x4xf32>
  tile.store %t, %y[%i, %c0] : vector<1x4xf32>, memref<?x4xf32>
}}"""
    for name, value in (("few", 1), ("more", 2), ("many", 3))
)


@pytest.mark.parametrize(
    "shape, kernel",
    [((1, 1), 1), ((2, 1), 1), ((1, 3), 2), ((2, 2), 2), ((5, 1), 3), ((3, 7), 3)],
)
def test_a_launch_takes_the_first_bucket_that_holds_the_rows(
    shape: tuple[int, int], kernel: int
) -> None:
    """Rows are the product of all dimensions but the last."""
    (y,) = run(parse_ir(LAUNCH), {"none": torch.zeros(1)}, (torch.zeros(*shape, 4),))
    assert y.shape == (*shape, 4)
    assert (y == kernel).all()


def test_a_launch_on_no_rows_gives_none() -> None:
    (y,) = run(parse_ir(LAUNCH), {"none": torch.zeros(1)}, (torch.zeros(0, 3, 4),))
    assert y.shape == (0, 3, 4)


@pytest.mark.parametrize("scheme", ["si4", "ui4, zero = f16, zero_mode = rescale"])
def test_a_matmul_reads_what_its_codes_stand_for(scheme: str) -> None:
    type_ = f"tensor<8x64x!gq.block_scaled<1x32 : f16 : {scheme}>>"
    rule = "minmax" if "zero" in scheme else "no_clip"
    module: Any = parse_ir(f"""
    func.func @forward(%x : tensor<?x64xf32>) -> (tensor<?x8xf32>, tensor<8x64xf32>) {{
      %w = gq.weight @w : tensor<8x64xf32>
      %b = gq.weight @b : tensor<8xf32>
      %q = gq.qcast %w by "rtn" "{rule}" : tensor<8x64xf32> -> {type_}
      %y = gq.matmul_t %x, %q bias %b : (tensor<?x64xf32>, {type_}, tensor<8xf32>) -> tensor<?x8xf32>
      %d = gq.dcast %q : {type_} -> tensor<8x64xf32>
      func.return %y, %d : tensor<?x8xf32>, tensor<8x64xf32>
    }}
    """)  # noqa: E501
    weights = {"w": torch.randn(8, 64), "b": torch.randn(8)}
    x = torch.randn(3, 64)
    y, dense = run(module, weights, (x,))
    assert not torch.equal(dense, weights["w"])
    assert torch.equal(y, torch.nn.functional.linear(x, dense, weights["b"]))
