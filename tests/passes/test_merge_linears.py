"""Merged linears: the same answers, to the bit, and how weights lie together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gqc.dialects import gq
from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir
from gqc.formats.concat import concat
from gqc.passes.fold_weights import joined
from gqc.passes.merge_linears import MergeLinears
from gqc.passes.pipeline import run_stages
from gqc.quantizers import QUANTIZERS
from gqc.schemes import parse_scheme

LAYERS = {"attn.q": 48, "attn.k": 24, "attn.v": 24}

MODULE = """
func.func @forward(%x : tensor<?x?x64xf32>) -> (tensor<?x?x48xf32>, tensor<?x24xf32>, tensor<?x?x24xf32>) {{
{layers}
  %k2 = fx.call "aten.view.default"(%k, [-1, 24]) : (tensor<?x?x24xf32>) -> tensor<?x24xf32>
  func.return %q, %k2, %v : tensor<?x?x48xf32>, tensor<?x24xf32>, tensor<?x?x24xf32>
}}
"""  # noqa: E501

LAYER = """
  %w{0} = gq.weight @attn.{0}.weight : tensor<{1}x64xf32>
  %b{0} = gq.weight @attn.{0}.bias : tensor<{1}xf32>
  %{0} = fx.call "aten.linear.default"(%x, %w{0}, %b{0}) : (tensor<?x?x64xf32>, tensor<{1}x64xf32>, tensor<{1}xf32>) -> tensor<?x?x{1}xf32> loc("attn.{0}")
"""  # noqa: E501


def attention():
    layers = "".join(LAYER.format(name[-1], rows) for name, rows in LAYERS.items())
    generator = torch.Generator().manual_seed(0)
    store = {}
    for name, rows in LAYERS.items():
        store[f"{name}.weight"] = torch.randn(rows, 64, generator=generator)
        store[f"{name}.bias"] = torch.randn(rows, generator=generator)
    return parse_ir(MODULE.format(layers=layers)), store


SCHEMES = ["int4_g32", "ui3 row scale=bf16 zero=ui3 zero_mode=quantized scale_rule=minmax"]


@pytest.mark.parametrize("scheme", [*SCHEMES, "mxfp8", "w4a16_mxfp4"])
@pytest.mark.parametrize("target", ["cpu_avx2", "sm_90", "sm_100"])
def test_the_same_answer(stages_over, scheme, target):
    """Before and after, and of kernels on weights that were folded together."""
    module, store = attention()
    x = torch.randn(2, 3, 64, generator=torch.Generator().manual_seed(1))
    if target != "cpu_avx2":
        module = parse_ir(str(module).replace("f32", "bf16"))
        store, x = {name: t.bfloat16() for name, t in store.items()}, x.bfloat16()
    dense = dict(store)
    stages = stages_over(store, target, f"*={scheme}")
    answers, merged = {}, []

    def after(name, module):
        if name in ("quantize-activations", "merge-linears", "kernels"):
            answers[name] = run(module, store, (x,))
        if name == "merge-linears":
            merged.extend(op for op in module.walk() if isinstance(op, gq.MatmulTOp))

    run_stages(module, stages, after)
    (matmul,) = merged
    assert gq.tensor_shape(matmul.weight) == (96, 64)
    for before, now in zip(answers["quantize-activations"], answers["merge-linears"], strict=True):
        torch.testing.assert_close(now, before, rtol=1e-5, atol=1e-5)
    for before, now in zip(answers["merge-linears"], answers["kernels"], strict=True):
        tolerance = 1e-4 if x.dtype == torch.float32 else 3e-2
        torch.testing.assert_close(now, before, rtol=tolerance, atol=tolerance)
    assert torch.equal(
        store["attn.q_k_v.bias"], torch.cat([dense[f"{name}.bias"] for name in LAYERS])
    )
    assert "attn.q_k_v.weight_scale" in store and "attn.q.weight" not in store


def test_what_is_packed_is_what_each_layer_has(stages_over):
    """The merged weight, taken out of its layout, has the codes of each layer's own."""
    module, store = attention()
    dense, seen = dict(store), []
    observe = lambda weight, quantized, op: seen.append((weight, quantized))  # noqa: E731
    run_stages(module, stages_over(store, "cpu_avx512", "*=int4_g32", observe=observe))
    assert [weight.shape[0] for weight, _ in seen] == [*LAYERS.values()]
    (launch,) = [op for op in module.walk() if isinstance(op, gq.LaunchOp)]
    layout: Any = launch.attributes["layout"]
    type_: Any = launch.attributes["packed"]
    parts = [store[f"attn.q_k_v.weight_{p}"] for p in ("packed", "scale", "zero")]
    whole = layout.row.unpack(parts, type_.element_type, type_.get_shape())
    scheme = parse_scheme("int4_g32")
    each = [
        QUANTIZERS[scheme.quantizer](dense[f"{name}.weight"], scheme.type(), scheme.scale_rule)
        for name in LAYERS
    ]
    assert torch.equal(whole.codes, torch.cat([one.codes for one in each]))
    assert torch.equal(whole.scale, torch.cat([one.scale for one in each]))


def test_panels_alternate():
    a, b = torch.arange(6), torch.arange(10, 16)
    assert concat([a, b], 2).tolist() == [0, 1, 10, 11, 2, 3, 12, 13, 4, 5, 14, 15]
    scales = [torch.ones(2, 3).to(torch.float8_e8m0fnu)] * 2
    assert concat(scales).shape == (4, 3) and concat(scales, 1).dtype == torch.float8_e8m0fnu


@pytest.mark.parametrize(
    ("names", "together"),
    [
        (["a.q.weight"], "a.q.weight"),
        (["a.q.weight", "a.k.weight"], "a.q_k.weight"),
        (["a.q.weight", "b.k.weight"], "a_q_b_k.weight"),
        (["q.weight", "a.k.weight"], "q_a_k.weight"),
        (["attn.q_weight", "attn.k_weight"], "attn.q_weight_k_weight"),
        (["weight", "a.weight"], "a.weight"),
    ],
)
def test_names_of_weights_together(names, together):
    assert joined(names) == together


def test_nothing_to_merge(linear, apply):
    module = linear(24, 64)
    text = str(module)
    apply(module, MergeLinears())
    assert str(module) == text
