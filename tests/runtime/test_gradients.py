"""Gradients through compiled layers: those of the same model with its weights dequantized."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.checkpoints.weights import dense

WEIGHTS_ALONE = ("int3_g32_sym", "w4a16_nvfp4")
WITH_ACTIVATIONS = ("nvfp4", "w4a8_g32_asym")
"""Decoded values under a tensor scale, and codes."""


class Gated(nn.Module):
    """All that is fused: gate and up are merged, and epilogues have SiLU·mul, GELU, residuals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.gate, self.up = (nn.Linear(64, 96, bias=False) for _ in range(2))
        self.down, self.head = nn.Linear(96, 64), nn.Linear(64, 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm(x)
        z = x + self.down(nn.functional.silu(self.gate(y)) * self.up(y))
        return self.head(nn.functional.gelu(z))


def gated() -> Gated:
    torch.manual_seed(0)
    return Gated().eval()


def dequantized(model: nn.Module, scheme: str) -> nn.Module:
    """The model with the weights that the codes stand for, in fp64."""
    source, new = gqc.quantize(model, scheme=scheme), copy.deepcopy(model)
    new.load_state_dict({name: dense(source.read(name)) for name in source.names()})
    return new.double()


def gradients(model: Callable[..., torch.Tensor], x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Of a weighted sum of the outputs, by x and by the parameters that are left."""
    x = x.clone().requires_grad_()
    y = model(x)
    weights = torch.linspace(-1, 1, y.numel(), dtype=y.dtype).reshape(y.shape)
    parameters = dict(model.named_parameters()) if isinstance(model, nn.Module) else {}
    wanted = {"x": x, **{n: p for n, p in parameters.items() if p.requires_grad}}
    found = torch.autograd.grad((y * weights).sum(), [*wanted.values()])
    return dict(zip(wanted, found, strict=True))


def assert_close(ours: dict[str, torch.Tensor], exact: dict[str, torch.Tensor], limit: float):
    assert {"x", "norm.weight", "down.bias", "head.bias"} <= ours.keys()
    for name, gradient in ours.items():
        error = (gradient.double() - exact[name]).norm() / exact[name].norm()
        assert error < limit, name


@pytest.mark.parametrize("whole", [False, True], ids=["layers", "whole"])
@pytest.mark.parametrize("scheme", WEIGHTS_ALONE)
def test_they_are_those_of_the_dequantized_model(scheme: str, whole: bool) -> None:
    model, x = gated(), torch.randn(2, 5, 64)
    compiled = gqc.compile(model, x if whole else None, scheme=scheme)
    exact = gradients(dequantized(model, scheme), x.double())
    assert_close(gradients(compiled, x), exact, 2e-6)


@pytest.mark.parametrize("whole", [False, True], ids=["layers", "whole"])
@pytest.mark.parametrize("scheme", WITH_ACTIVATIONS)
def test_quantizers_pass_them_straight_through(scheme: str, whole: bool) -> None:
    """A layer's gradient does not depend on how its input is rounded."""
    torch.manual_seed(1)
    model, x = nn.Linear(64, 48).eval(), torch.randn(3, 7, 64)
    compiled = gqc.compile(model, x if whole else None, scheme=scheme)
    exact = gradients(dequantized(model, scheme), x.double())
    ours = gradients(compiled, x)
    assert ours.keys() == {"x", "bias"}
    for name, gradient in ours.items():
        assert (gradient.double() - exact[name]).norm() < 1e-6 * exact[name].norm(), name


class SiluMul(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(96, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        gate, up = x.chunk(2, -1)
        return self.down(nn.functional.silu(gate) * up)


@pytest.mark.parametrize("scheme", ["mxfp8", "w4a8_g32"])
def test_what_is_fused_into_a_quantizer_has_its_own(scheme: str) -> None:
    torch.manual_seed(2)
    model, x = SiluMul().eval(), torch.randn(9, 192)
    compiled = gqc.compile(model, x, scheme=scheme)
    assert any("silu" in kernel.name for kernel in compiled.kernels)
    exact = gradients(dequantized(model, scheme), x.double())["x"]
    ours = gradients(compiled, x)["x"]
    assert (ours.double() - exact).norm() < 1e-6 * exact.norm()


def test_a_model_of_quantized_activations_is_near() -> None:
    """Derivatives are taken where the quantized model is, which is not where the exact one is."""
    model, x = gated(), torch.randn(2, 5, 64)
    compiled = gqc.compile(model, x, scheme="w4a8_g32")
    assert any("silu_mul" in kernel.name for kernel in compiled.kernels)
    exact = gradients(dequantized(model, "w4a8_g32"), x.double())
    assert_close(gradients(compiled, x), exact, 0.02)


def test_gradcheck() -> None:
    """By differences, which are exact of what is linear but for rounding."""
    torch.manual_seed(3)
    layer = gqc.compile(nn.Linear(32, 16).eval(), scheme="int8_g32")
    x = torch.randn(3, 32, requires_grad=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Input #0 requires gradient and is not a double")
        assert torch.autograd.gradcheck(layer, (x,), eps=0.5, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("scheme", ["w4a8_g32", "int8_g32+hadamard"])
def test_torch_compile_and_func(scheme: str) -> None:
    model, x = gated(), torch.randn(5, 64)
    compiled = gqc.compile(model, scheme=scheme)
    eager = gradients(compiled, x)

    def total(x: torch.Tensor) -> torch.Tensor:
        y = compiled(x)
        return (y * torch.linspace(-1, 1, y.numel()).reshape(y.shape)).sum()

    torch.testing.assert_close(torch.func.grad(total)(x), eager["x"])
    torch._dynamo.reset()
    traced: Any = torch.compile(compiled, fullgraph=True, backend="aot_eager")
    for name, gradient in gradients(traced, x).items():
        torch.testing.assert_close(gradient, eager[name.removeprefix("_orig_mod.")])


def test_an_adapter_before_frozen_layers_trains() -> None:
    """Some steps of gradient descent go where they go with the dequantized model."""
    model = gated().requires_grad_(False)
    compiled, reference = gqc.compile(model, scheme="int4_g32"), dequantized(model, "int4_g32")
    x, target = torch.randn(16, 64), torch.randn(16, 32)

    def trained(frozen: nn.Module, dtype: torch.dtype) -> torch.Tensor:
        adapter = torch.zeros(64, 64, dtype=dtype, requires_grad=True)
        for _ in range(5):
            y = frozen(x.to(dtype) + x.to(dtype) @ adapter)
            (gradient,) = torch.autograd.grad((y - target).square().mean(), adapter)
            adapter = (adapter - gradient).detach().requires_grad_()
        return adapter.detach()

    ours, exact = trained(compiled, torch.float32), trained(reference, torch.float64)
    assert exact.norm() > 0.1
    assert (ours.double() - exact).norm() < 1e-5 * exact.norm()


def test_none_are_recorded_without_need() -> None:
    compiled = gqc.compile(gated().requires_grad_(False), scheme="int4_g32")
    assert not compiled(torch.randn(2, 64)).requires_grad
    with torch.no_grad():
        assert not compiled(torch.randn(2, 64, requires_grad=True)).requires_grad


def test_second_derivatives_are_refused() -> None:
    compiled = gqc.compile(nn.Linear(64, 32).eval(), scheme="int4_g32")
    x = torch.randn(2, 64, requires_grad=True)
    (gradient,) = torch.autograd.grad(compiled(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiate twice"):
        gradient.sum().backward()
