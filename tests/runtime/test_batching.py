"""torch.func on compiled models: each example of a batch by itself, and parameters given."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import gqc

SCHEMES = ("mxfp8", "nvfp4", "int4_g32", "w4a8_g32")


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 32)).eval()


@pytest.mark.parametrize("whole", [False, True], ids=["layers", "whole"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_vmap_is_each_example_by_itself(scheme: str, whole: bool) -> None:
    """To the bit: the tensor scale of NVFP4 is that of one example too."""
    x = torch.randn(3, 2, 64) * torch.tensor([0.1, 1.0, 10.0])[:, None, None]
    compiled: Any = gqc.compile(model(), x[0] if whole else None, scheme=scheme, target="cpu")
    with torch.no_grad():
        expected = torch.stack([compiled(each) for each in x])
        assert torch.equal(torch.func.vmap(compiled)(x), expected)
        turned = torch.func.vmap(compiled, in_dims=1, out_dims=1)(x.transpose(0, 1).contiguous())
        assert torch.equal(turned, expected.transpose(0, 1))
        by_rows = torch.func.vmap(torch.func.vmap(compiled[0]))(x) if not whole else None
        rows = torch.stack([compiled[0](row) for row in x.flatten(0, 1)]) if not whole else None
        assert by_rows is None or rows is None or torch.equal(by_rows.flatten(0, 1), rows)


def test_rotations_of_a_batch() -> None:
    x = torch.randn(3, 2, 64)
    found = torch.func.vmap(lambda v: torch.ops.gqc.rotate(v, 32), in_dims=1)(x)
    assert torch.allclose(found, torch.ops.gqc.rotate(x.transpose(0, 1), 32), atol=1e-6)


def test_biases_of_a_batch() -> None:
    compiled: Any = gqc.compile(model(), scheme="mxfp8", target="cpu")
    x, biases = torch.randn(3, 2, 64), torch.randn(3, 64)

    def layer(x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(compiled[0], {"bias": bias}, (x,))

    with torch.no_grad():
        found = torch.func.vmap(layer)(x, biases)
        expected = torch.stack([layer(*each) for each in zip(x, biases, strict=True)])
    assert torch.equal(found, expected)
    assert not torch.equal(found[0], compiled[0](x[0]))


@pytest.mark.parametrize("scheme", ["mxfp8", "nvfp4"])
def test_functional_call_takes_other_parameters(scheme: str) -> None:
    one: Any = gqc.compile(model(), scheme=scheme, target="cpu")
    dense: Any = model()
    nn.init.normal_(dense[0].weight)
    nn.init.normal_(dense[0].bias)
    other: Any = gqc.compile(dense, scheme=scheme, target="cpu")
    state = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    x = torch.randn(4, 64)
    with torch.no_grad():
        found = torch.func.functional_call(one, state, (x,))
        assert torch.equal(found, other(x)) and not torch.equal(found, one(x))


def test_gradients_of_each_example() -> None:
    compiled: Any = gqc.compile(model(), scheme="mxfp8", target="cpu")
    x = torch.randn(3, 2, 64)
    per_example = torch.func.vmap(torch.func.grad(lambda v: compiled(v).square().sum()))(x)
    each = x.clone().requires_grad_()
    compiled(each).square().sum().backward()
    assert each.grad is not None
    assert torch.allclose(per_example, each.grad, rtol=1e-4, atol=1e-4)
