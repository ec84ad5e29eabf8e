"""Dead code and float64: what nobody reads is left out, and what kernels do not read stays."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import gqc


class Dead(nn.Module):
    """`dead` computes in another dtype what nobody reads."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.dead = nn.Linear(64, 128), nn.Linear(64, 64).bfloat16()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.dead(x.bfloat16()).float()
        return self.fc(x)


@pytest.mark.parametrize("scheme", ["int4_g32", "mxfp8"])
def test_a_layer_that_nobody_reads(scheme: str) -> None:
    """It is left out, which is said, and does not change the others."""
    torch.manual_seed(0)
    model, x = Dead(), torch.randn(3, 64)
    with pytest.warns(UserWarning, match="left out, for nothing reads what they compute: dead$"):
        compiled = gqc.compile(model, (x,), scheme=scheme, target="cpu")
    assert [row.layer for row in compiled.report().rows] == ["fc"]
    alone = gqc.compile(model.fc, (x,), scheme=scheme, target="cpu")
    assert torch.equal(compiled(x), alone(x))


class Counting(nn.Module):
    """`fc` is read by nothing but the buffer that the model writes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out = nn.Linear(32, 32), nn.Linear(32, 32)
        self.register_buffer("sums", torch.zeros(32))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.sums += self.fc(x).sum(0)
        return self.out(x)


def test_what_is_written_is_read(recwarn: pytest.WarningsRecorder) -> None:
    torch.manual_seed(0)
    model, x = Counting(), torch.randn(3, 32)
    compiled = gqc.compile(model, (x,), scheme="int8_g32", target="cpu")
    assert not [w for w in recwarn if "left out" in str(w.message)]
    compiled(x)
    model(x)
    assert model.get_buffer("sums").abs().sum() > 0
    torch.testing.assert_close(compiled.sums, model.sums, rtol=0.05, atol=0.05)


def sequential() -> nn.Module:
    return nn.Sequential(nn.RMSNorm(32), nn.Linear(32, 64), nn.SiLU(), nn.Linear(64, 32)).double()


@pytest.mark.parametrize("scheme", ["int4_g32", "w4a8_g32"])
@pytest.mark.parametrize("example", [None, (torch.ones(2, 32, dtype=torch.float64),)])
def test_float64_is_kept(scheme: str, example: tuple[torch.Tensor] | None) -> None:
    """A float64 model is not quantized, and the report says why; its answer does not change."""
    torch.manual_seed(0)
    model, x = sequential(), torch.randn(3, 32, dtype=torch.float64)
    with pytest.warns(UserWarning, match="every layer was kept as it is"):
        compiled = gqc.compile(model, example, scheme=scheme, target="cpu")
    assert {row.decision for row in compiled.report().rows} == {"kept"}
    (reason,) = {row.reason for row in compiled.report().rows}
    assert reason == "its activations are f64: kernels read f16, bf16, f32"
    torch.testing.assert_close(compiled(x), model(x), rtol=1e-12, atol=1e-12)


class Wide(nn.Module):
    """Between two layers of float32 something is computed in float64."""

    def __init__(self, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.step = nn.Linear(32, 64), nn.Linear(64, 32), step

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.b(self.step(self.a(x).double()).float())


@pytest.mark.parametrize("scheme", ["int8_g32", "w8a8_g32"])
@pytest.mark.parametrize(
    "step", [lambda x: x, lambda x: x * torch.sigmoid(x), nn.RMSNorm(64).double()]
)
def test_float64_between_layers(scheme: str, step: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """No kernel computes in float64, so none takes it in; torch does."""
    torch.manual_seed(0)
    model, x = Wide(step), torch.randn(3, 32)
    compiled = gqc.compile(model, (x,), scheme=scheme, target="cpu")
    assert "xf64" not in "".join(kernel.ir for kernel in compiled.kernels)
    torch.testing.assert_close(compiled(x), model(x), rtol=0.1, atol=0.1)


def test_stored_weights_of_a_float64_model_are_refused() -> None:
    """They cannot be kept dense: one error names the layers."""
    model = sequential()
    quantized = gqc.quantize(model.float(), scheme="w4a8_g32")
    with pytest.raises(gqc.GqcError, match="cannot do 2 layers:\n  1: its activations are f64"):
        gqc.compile(model.double(), weights=quantized, target="cpu")
