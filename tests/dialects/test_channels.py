"""What the operations on channels mean, on activations and on weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir
from gqc.formats.rotation import hadamard


def result(op: str, type_: str, vector: str, *args: Any, weights: dict[str, Any]) -> Any:
    """The result of an operation on %x of a type, by %v, a weight."""
    module = parse_ir(f"""
    func.func @forward(%x : {type_}) -> {type_} {{
      %v = gq.weight @v : {vector}
      %y = {op} : {type_}, {vector} -> {type_}
      func.return %y : {type_}
    }}
    """)
    return run(module, weights, args)[0]


@pytest.mark.parametrize("dim, shape", [(0, (6, 1, 1)), (1, (4, 1)), (2, (8,))])
@pytest.mark.parametrize("inverse", ["", " inverse"])
@pytest.mark.parametrize("offset", [None, 1.0])
def test_scaling_multiplies_each_channel(dim, shape, inverse, offset):
    x, factor = torch.randn(6, 4, 8).double(), torch.rand(shape).double() + 0.5
    spelled = f"gq.scale_channels %x by %v along {dim}{inverse}"
    if offset is not None:
        spelled += f" offset {offset}"
    vector = f"tensor<{factor.numel()}xf64>"
    y = result(spelled, "tensor<6x4x8xf64>", vector, x, weights={"v": factor.flatten()})
    o = offset or 0.0
    expected = (x + o) * (1 / factor if inverse else factor) - o
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)


def test_scaling_is_rounded_once():
    """By a factor of more digits than x has, which may not be rounded to those before."""
    x = torch.linspace(1, 2, 128).bfloat16()
    factor = torch.full((128,), 1.005)
    op = "gq.scale_channels %x by %v along 0"
    y = result(op, "tensor<128xbf16>", "tensor<128xf32>", x, weights={"v": factor})
    assert torch.equal(y, (x.double() * factor.double()).to(torch.bfloat16))
    assert not torch.equal(y, x * factor.bfloat16())


@pytest.mark.parametrize("dim", [0, 1])
def test_gathering_takes_channels_in_order(dim):
    x, order = torch.randn(4, 4), torch.tensor([2, 0, 3, 1])
    op = f"gq.gather_channels %x by %v along {dim}"
    y = result(op, "tensor<4x4xf32>", "tensor<4xi64>", x, weights={"v": order})
    assert torch.equal(y, x[order] if dim == 0 else x[:, order])


def test_rotating_multiplies_by_a_hadamard_matrix():
    module = parse_ir("""
    func.func @forward(%x : tensor<?x8xf64>) -> tensor<?x8xf64> {
      %y = gq.rotate_channels %x blocks 4 : tensor<?x8xf64> -> tensor<?x8xf64>
      func.return %y : tensor<?x8xf64>
    }
    """)
    x = torch.randn(3, 8).double()
    (y,) = run(module, {}, (x,))
    expected = x @ torch.block_diag(hadamard(4), hadamard(4))
    torch.testing.assert_close(y, expected, rtol=1e-14, atol=1e-14)
