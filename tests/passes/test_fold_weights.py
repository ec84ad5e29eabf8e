"""Folding over a store: what comes in, what goes, what is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from gqc.dialects import gq
from gqc.dialects.text import parse_ir
from gqc.errors import GqcError
from gqc.formats.layouts import LAYOUTS
from gqc.passes.pipeline import run_stages
from gqc.quantizers import rtn
from gqc.schemes import parse_scheme

SHARED = """
func.func @forward(%ids : tensor<?xi64>) -> (tensor<?x32xf32>, tensor<?x32xf32>, tensor<?x32xf32>) {
  %w = gq.weight @embed.weight : tensor<32x32xf32>
  %x = fx.call "aten.embedding.default"(%w, %ids) : (tensor<32x32xf32>, tensor<?xi64>) -> tensor<?x32xf32>
  %v = gq.weight @fc.weight : tensor<32x32xf32>
  %a = gq.matmul_t %x, %v : (tensor<?x32xf32>, tensor<32x32xf32>) -> tensor<?x32xf32> loc("a")
  %b = gq.matmul_t %x, %v : (tensor<?x32xf32>, tensor<32x32xf32>) -> tensor<?x32xf32> loc("b")
  %c = gq.matmul_t %x, %v : (tensor<?x32xf32>, tensor<32x32xf32>) -> tensor<?x32xf32> loc("c")
  func.return %a, %b, %c : tensor<?x32xf32>, tensor<?x32xf32>, tensor<?x32xf32>
}
"""  # noqa: E501


Fold = Callable[..., list[tuple[Any, ...]]]


@pytest.fixture
def fold(stages_over: Any) -> Fold:
    """Compile a module to kernels over a store; gives what the observer saw."""

    def run(module: Any, store: dict[str, torch.Tensor], *schemes: str) -> list[tuple[Any, ...]]:
        seen: list[tuple[Any, ...]] = []
        observe = lambda *each: seen.append(each)  # noqa: E731
        run_stages(module, stages_over(store, "sm_90", *schemes, observe=observe))
        return seen

    return run


def test_the_store_holds_packed_parts_and_what_is_read_dense(
    linear: Any, weights: Any, fold: Fold
) -> None:
    store = weights(24, 64, "bf16", bias=True)
    dense, bias = store["fc.weight"], store["fc.bias"]
    store["never.read"] = torch.zeros(3)
    module = linear(24, 64, "bf16", bias=True)
    scheme = "ui3 g32 scale=bf16 zero=ui3 zero_mode=quantized scale_rule=minmax"
    ((weight, quantized, cast),) = fold(module, store, f"*={scheme}")

    names = ["packed_2", "packed_1", "scale", "zero_2", "zero_1"]
    assert set(store) == {"fc.bias", *(f"fc.weight_{n}" for n in names)}
    assert store["fc.bias"] is bias
    parts = LAYOUTS["k_words"].pack(rtn(dense, parse_scheme(scheme).type(), "minmax"), 1)
    for part, key in zip(parts, names, strict=True):
        assert torch.equal(store[f"fc.weight_{key}"], part), key

    assert weight is dense and isinstance(cast, gq.QcastOp)
    assert torch.equal(quantized.codes, rtn(dense, quantized.type, "minmax").codes)
    types = {w.key: w.result.type for w in module.walk() if isinstance(w, gq.WeightOp)}
    assert set(types) == set(store)
    for key, tensor in store.items():
        assert types[key].get_shape() == tuple(tensor.shape), key


def test_a_transposed_weight_is_quantized_along_k(linear: Any, weights: Any, fold: Fold) -> None:
    straight, turned = weights(24, 64, "bf16"), weights(24, 64, "bf16", spelling="conv1d")
    fold(linear(24, 64, "bf16"), straight, "*=int4_g32")
    fold(linear(24, 64, "bf16", spelling="conv1d"), turned, "*=int4_g32")
    assert set(straight) == set(turned)
    assert all(torch.equal(straight[name], turned[name]) for name in straight)


def test_a_shared_weight_is_packed_once_for_each_scheme(fold: Fold) -> None:
    store = {"embed.weight": torch.randn(32, 32), "fc.weight": torch.randn(32, 32)}
    embedding = store["embed.weight"]
    module = parse_ir(SHARED.replace("xf32>", "xbf16>"))
    store = {name: tensor.bfloat16() for name, tensor in store.items()}
    seen = fold(module, store, "b=int8_row_sym", "*=int4_g32_sym")
    assert len(seen) == 2, "c shares what a packed"
    assert len(store) == 1 + 2 * 2
    assert torch.equal(store["embed.weight"], embedding.bfloat16())
    launches = {op.location.desc.data: op for op in module.walk() if isinstance(op, gq.LaunchOp)}  # type: ignore
    keys = {k: [p.owner.key for p in op.parts] for k, op in launches.items()}  # type: ignore
    assert keys["a"] == keys["c"] != keys["b"]
    scales = {k: store[keys[k][1]].shape for k in "ab"}
    assert scales == {"a": (1, 32), "b": (1, 32)}
    assert store[keys["a"][0]].shape == (32, 4) and store[keys["b"][0]].shape == (32, 8)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda w: w.fill_(float("nan")), "the weight holds inf or NaN"),
        (lambda w: w.fill_(1e6), "a zero point overflows f16: give the scheme zero=bf16"),
    ],
)
def test_a_weight_that_cannot_be_quantized_is_named(
    linear: Any, weights: Any, fold: Fold, spoil: Any, words: str
) -> None:
    store = weights(24, 64, "bf16")
    spoil(store["fc.weight"])
    with pytest.raises(GqcError, match=rf"^fc: weight \[24, 64\]: .*{words}"):
        fold(linear(24, 64, "bf16"), store, "*=int4_g32")


@pytest.mark.parametrize("scheme", ["w4a16_mxfp4_rceil", "w4a16_mxfp4"])
def test_a_float16_weight_that_its_scale_takes_beyond_float16_is_named(
    linear: Any, weights: Any, fold: Fold, scheme: str
) -> None:
    store = weights(24, 64, "f16")
    store["fc.weight"][3, 5] = 64000
    if scheme == "w4a16_mxfp4":  # the scale is rounded down: 64000 becomes 6 · 2**13
        fold(linear(24, 64, "f16"), store, f"*={scheme}")
        return
    words = r"its greatest, 64000, becomes 65536 in .*, beyond 65504, .*model.bfloat16\(\)"
    with pytest.raises(GqcError, match=rf"^fc: weight \[24, 64\]: {words}"):
        fold(linear(24, 64, "f16"), store, f"*={scheme}")


def test_a_parameter_is_folded_without_gradients(linear: Any, weights: Any, fold: Fold) -> None:
    store = {k: torch.nn.Parameter(v) for k, v in weights(24, 64, "bf16").items()}
    fold(linear(24, 64, "bf16"), store, "*=int4_g32")  # pyright: ignore
    assert not any(tensor.requires_grad for tensor in store.values())


TWO = """
func.func @forward(%x : tensor<?x32xbf16>) -> tensor<?x32xbf16> {
  %v = gq.weight @a.weight : tensor<32x32xbf16>
  %w = gq.weight @b.weight : tensor<32x32xbf16>
  %y = gq.matmul_t %x, %v : (tensor<?x32xbf16>, tensor<32x32xbf16>) -> tensor<?x32xbf16>
  %z = gq.matmul_t %y, %w : (tensor<?x32xbf16>, tensor<32x32xbf16>) -> tensor<?x32xbf16>
  func.return %z : tensor<?x32xbf16>
}
"""


def test_every_weight_that_cannot_be_quantized_is_named(fold: Fold) -> None:
    store = {name: torch.full((32, 32), torch.inf).bfloat16() for name in ("a.weight", "b.weight")}
    with pytest.raises(GqcError) as error:
        fold(parse_ir(TWO), store, "*=int4_g32")
    assert str(error.value).splitlines() == [
        "2 weights cannot be quantized:",
        "  a: weight [32, 32]: the weight holds inf or NaN",
        "  b: weight [32, 32]: the weight holds inf or NaN",
    ]


def test_a_tensor_of_the_model_keeps_its_name(fold: Fold) -> None:
    """Where the model has a `weight_scale` itself, read or only written, the part is another."""
    own = "%s = gq.weight @a.weight_scale : tensor<32xbf16>\n%z = "
    scaled = (
        TWO.replace("%z = ", own)
        .replace("return %z", "return %u")
        .replace(
            "func.return",
            """%u = fx.call "aten.mul.Tensor"(%z, %s) :
            (tensor<?x32xbf16>, tensor<32xbf16>) -> tensor<?x32xbf16>\nfunc.return""",
        )
        .replace(
            "-> tensor<?x32xbf16> {",
            '-> (tensor<?x32xbf16>, tensor<?x32xbf16> {fx.mutates = "b.weight_zero"}) {',
        )
        .replace("%u : tensor<?x32xbf16>\n", "%u, %z : tensor<?x32xbf16>, tensor<?x32xbf16>\n")
    )
    names = ("a.weight", "b.weight")
    store = {name: torch.randn(32, 32).bfloat16() for name in names}
    store |= {name: torch.ones(32).bfloat16() for name in ("a.weight_scale", "b.weight_zero")}
    before = dict(store)
    module = parse_ir(scaled)
    fold(module, store, "*=int4_g32")
    assert store["a.weight_scale"] is before["a.weight_scale"]
    assert store["b.weight_zero"] is before["b.weight_zero"]
    kinds = ("packed", "scale", "zero")
    parts = {f"{name}_{kind}_" for name in names for kind in kinds}
    assert set(store) == {"a.weight_scale", "b.weight_zero", *parts}
    launches = [op for op in module.walk() if isinstance(op, gq.LaunchOp)]
    read = {p.owner.key for op in launches for p in op.parts}  # type: ignore
    assert read == parts
