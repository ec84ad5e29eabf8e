"""Quantized activations, interpreted after every pass: the same answer, to the bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects import gq
from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir
from gqc.passes.pipeline import run_stages
from gqc.passes.quantize_activations import QuantizeActivations
from gqc.passes.quantize_weights import QuantizeWeights
from gqc.passes.recognize_linears import RecognizeLinears
from gqc.quantizers import microscaling
from gqc.quantizers import quantize as quantize_weight
from gqc.schemes import preset

SCHEMES = ("mxfp8", "mxfp6_e3m2", "mxfp4_ceil", "mxint8", "nvfp4", "nvfp4_static", "mxfp8_mxfp4")
TARGETS = ("cpu_avx2", "sm_90", "sm_100", "sm_120", "gfx950")
CASES = [(s, t, i) for i, s in enumerate(SCHEMES) for t in TARGETS]
INTEGERS = (
    ("w4a8_g32", "cpu_avx512bf16"),
    ("w4a8_g16_asym", "cpu_avx2"),
    ("w8a8_g64", "cpu_neon"),
    ("w8a8_g32_asym", "cpu_avxvnni"),
    ("w3a8_g32", "cpu_avx512"),
    ("w4a8_g32", "cpu_portable"),
    ("w4a8_g32_asym", "cpu_amx"),
)


CASES = [*CASES[::2], *((*case, i) for i, case in enumerate(INTEGERS))]


@pytest.mark.parametrize(("scheme", "target", "i"), CASES, ids=lambda v: str(v))
def test_every_pass_keeps_the_answer(
    linear: Callable[..., ModuleOp],
    weights: Callable[..., dict[str, torch.Tensor]],
    stages_over: Any,
    scheme: str,
    target: str,
    i: int,
) -> None:
    f, lead, bias = ("bf16", "f16")[i % 2], ("?", "2x?")[i % 2], i % 3 > 0
    module, store = linear(40, 64, f, bias, lead=lead), weights(40, 64, f, bias)
    store["fc.input_scale"] = torch.tensor([3e-3])
    rows = 20 if i % 3 == 0 else 5
    x = torch.randn((2, rows, 64)[len(lead) < 2 :], generator=torch.Generator().manual_seed(i))
    x = x.to(store["fc.weight"].dtype)
    answers: dict[str, torch.Tensor] = {}

    def after(name: str, module: ModuleOp) -> None:
        (answers[name],) = run(module, store, (x,))

    expected = None
    stages = stages_over(store, target, f"*={scheme}")
    kept = {name: store[name] for name in store}
    run_stages(module, stages, after)
    activation, weight = preset(scheme).activation, preset(scheme)
    assert activation is not None
    scale = kept["fc.input_scale"] if activation.static else None
    xq = microscaling(x, activation.type(x.dim()), activation.scale_rule, scale)
    wq = quantize_weight(kept["fc.weight"], weight)
    expected = xq.dequantize(torch.float64) @ wq.dequantize(torch.float64).t()
    if bias:
        expected = expected + kept["fc.bias"].double()
    error = (answers["quantize-activations"].double() - expected).abs()
    unit = 2.0 ** (-8 if f == "bf16" else -11)
    assert (error <= unit * expected.abs() + 1e-5).all()
    quantized = [*answers][[*answers].index("quantize-activations") :]
    for name in quantized:
        gap = (answers[name].double() - answers["quantize-activations"].double()).abs()
        assert (gap <= 2 * unit * expected.abs() + 1e-5).all(), name  # sums in another order


def quantized(text: str, *schemes: str) -> ModuleOp:
    module = parse_ir(text)
    for pass_ in (RecognizeLinears(), QuantizeWeights(schemes), QuantizeActivations(schemes)):
        pass_.apply(None, module)  # pyright: ignore[reportArgumentType]
    module.verify()
    return module


QKV = """
func.func @forward(%x : tensor<?x64xf32>) -> (tensor<?x8xf32>, tensor<?x8xf32>) {
  %q = gq.weight @q.weight : tensor<8x64xf32>
  %k = gq.weight @k.weight : tensor<8x64xf32>
  %a = fx.call "aten.linear.default"(%x, %q) : (tensor<?x64xf32>, tensor<8x64xf32>) -> tensor<?x8xf32> loc("q")
  %b = fx.call "aten.linear.default"(%x, %k) : (tensor<?x64xf32>, tensor<8x64xf32>) -> tensor<?x8xf32> loc("k")
  func.return %a, %b : tensor<?x8xf32>, tensor<?x8xf32>
}
"""  # noqa: E501


@pytest.mark.parametrize(
    ("schemes", "casts"),
    [
        (("*=nvfp4",), 1),
        (("*=nvfp4_static",), 2),  # each layer has its scale
        (("q=mxfp8", "k=mxfp4"), 2),
        (("q=mxfp8", "k=mxfp8_mxfp4"), 1),
        (("q=mxfp8", "k=w4a16_mxfp4"), 1),
        (("*=w4a16_mxfp4",), 0),
    ],
)
def test_layers_share_a_quantized_input(schemes: tuple[str, ...], casts: int) -> None:
    module = quantized(QKV, *schemes)
    found = [
        op
        for op in module.walk()
        if isinstance(op, gq.QcastOp) and not isinstance(op.source.owner, gq.WeightOp)
    ]
    assert len(found) == casts
