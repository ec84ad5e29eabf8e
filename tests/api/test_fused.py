"""Fused quantizers, end to end: the compiled model beside one whose quantizers stand alone."""

from __future__ import annotations

import pytest
import torch

import gqc

TOLERANCE = 1e-3
"""Of the Euclidean norm: some numbers fall on the other side between two codes."""


@pytest.mark.parametrize("scheme", ["mxfp8", "mxfp4", "nvfp4_static"])
@pytest.mark.parametrize("kind", ["hugging_face", "torch", "silu"])
def test_whole_models_fuse(producer, kind, scheme):
    """Without example inputs each linear layer is compiled alone, and nothing is fused with it."""
    case = producer(kind, 128, rows=7, element="f32")
    inputs = tuple(x.view(1, *x.shape) for x in case.inputs)
    calibration = [inputs] if scheme == "nvfp4_static" else None
    fused, alone = (
        gqc.compile(case.module, example, scheme=scheme, target="cpu", calibration=calibration)
        for example in (inputs, None)
    )
    called = [str(node.target) for node in fused.graph.nodes if node.op == "call_function"]
    assert called[-2:] == ["gqc.quantize.default", "gqc.matmul.default"] or "getitem" in called[-2]
    assert not any("aten" in name for name in called)
    ours, theirs = fused(*inputs), alone(*inputs)
    assert (ours - theirs).norm() <= TOLERANCE * theirs.norm()
    more = tuple(x.repeat(2, 1, 1) for x in inputs)
    torch.testing.assert_close(fused(*more)[:1, :7], ours, rtol=0, atol=0)


def test_constants_tell_kernels_apart():
    """Norms that differ in eps alone have kernels of their own."""

    class Norms(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = torch.nn.RMSNorm(64, 1e-5), torch.nn.RMSNorm(64, 10.0)
            self.c, self.fc = torch.nn.RMSNorm(64, 1e-5), torch.nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(self.a(self.fc(self.b(self.fc(self.c(x))))))

    torch.manual_seed(0)
    model, x = Norms().eval(), torch.randn(3, 64)
    compiled = gqc.compile(model, x, scheme="mxfp8", target="cpu")
    assert sum(k.name.startswith("quantize_") for k in compiled.kernels) == 2
    alone = gqc.compile(model, scheme="mxfp8", target="cpu")(x)
    assert (compiled(x) - alone).norm() <= TOLERANCE * alone.norm()
