"""Factors and permutations of a layer's input, moved into what is before it."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from frontend import channel_models as models
from frontend.channel_models import K
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects import gq
from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir
from gqc.driver.materialize import materialize
from gqc.frontend.capture import capture
from gqc.frontend.channel_groups import Group, channel_groups, groups_of
from gqc.frontend.import_fx import import_fx
from gqc.frontend.signature import Imported
from gqc.passes.fold_channels import FoldChannels
from gqc.passes.fold_weights import FoldWeights
from gqc.passes.recognize_linears import RecognizeLinears

FIRST = ["first.weight", "first.bias"]
GATED = ["first.weight", "first.bias", "up.weight", "up.bias"]

FOLDED: list[tuple[str, Any, str, list[str]]] = [
    ("RMSNorm of Llama", models.LlamaNorm, "scale", ["weight"]),
    ("RMSNorm of Gemma", models.GemmaNorm, "scale", ["weight"]),
    ("RMSNorm of torch", models.TorchNorm, "scale", ["weight"]),
    ("LayerNorm", models.LayerNorm, "scale", ["norm.weight", "norm.bias"]),
    ("two readers", models.Pair, "scale", ["weight"]),
    ("linear", models.Block, "scale", FIRST),
    ("linear", models.Block, "gather", FIRST),
    ("ReLU", models.Relu, "gather", FIRST),
    ("GELU in parts", models.NewGelu, "gather", FIRST),
    ("Conv1D", models.Conv, "scale", FIRST),
    ("Conv1D", models.Conv, "gather", FIRST),
    ("SiLU and product", models.Gated, "scale", ["up.weight", "up.bias"]),
    ("SiLU and product", models.Gated, "gather", GATED),
    ("sums", models.Sums, "scale", [*GATED, "weight"]),
    ("sums", models.Sums, "gather", [*GATED, "weight"]),
    ("attention", models.Attention, "scale", FIRST),
    ("attention in parts", lambda: models.Attention(eager=True), "scale", FIRST),
]

KEPT: list[tuple[str, Any, str, str]] = [
    ("norm", models.Pair, "gather", "aten.rms_norm.default would need its input permuted"),
    ("residual", models.Residual, "scale", "aten.rms_norm.default is read by aten.add.Tensor too"),
    ("ReLU", models.Relu, "scale", "aten.relu.default of a multiple is no multiple"),
    (
        "LayerNorm without a weight",
        lambda: models.LayerNorm(affine=False),
        "scale",
        "aten.layer_norm.default has no weight by channels",
    ),
    (
        "grouped queries",
        lambda: models.Attention(kv=2),
        "scale",
        "several query heads read a head of values, and their factors differ",
    ),
    (
        "repeated heads",
        models.Repeated,
        "scale",
        "several query heads read a head of values, and their factors differ",
    ),
    (
        "heads",
        models.Attention,
        "gather",
        "the permutation would mix the heads of an attention",
    ),
    ("buffer", models.Buffer, "scale", "weight is a buffer, not a parameter"),
    ("norm called twice", models.Tied, "scale", "weight is read elsewhere too"),
    ("tied layers", models.TiedLayers, "scale", "first.weight is read elsewhere too"),
]


def vector(kind: str, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    if kind == "gather":
        return torch.randperm(K, generator=generator)
    return torch.rand(K, generator=generator).double() + 0.5


CAPTURED: dict[Any, tuple[Any, Imported]] = {}


def captured(make: Any) -> tuple[Any, ModuleOp, dict[str, torch.Tensor]]:
    """A model, its IR with linears recognized, and its weights; each is captured once."""
    if make not in CAPTURED:
        model = make()
        CAPTURED[make] = model, import_fx(capture(model, inputs()))
        RecognizeLinears().apply(Context(), CAPTURED[make][1].module)
    model, imported = CAPTURED[make]
    return model, imported.module.clone(), imported.weights


def inputs() -> torch.Tensor:
    return torch.randn(2, 3, K, generator=torch.Generator().manual_seed(1)).double()


def last_of(groups: list[Group]) -> Group:
    (group,) = (group for group in groups if "last" in group.layers)
    return group


@pytest.mark.parametrize("make, kind, names", [pytest.param(*c[1:], id=c[0]) for c in FOLDED])
def test_weights_take_what_was_done_to_the_activation(make, kind, names):
    """In the IR, by the interpreter; and in the model, by its parameters."""
    model, module, weights = captured(make)
    x = inputs()
    groups = groups_of(module, kind)
    module.verify()
    group = last_of(groups)
    assert sorted({change.name for change in group.producers}) == sorted(names)
    assert group.reason == ""
    store = {**weights}
    store |= {f"channels.{i}": vector(kind, i) for i in range(len(groups))}
    (y,) = run(module, store, (x,))
    torch.testing.assert_close(y, model(x), rtol=1e-12, atol=1e-12)

    changed = deepcopy(model)
    for change in (*group.weights, *group.producers):
        parameter = changed.get_parameter(change.name)
        new = change.apply(parameter, vector(kind, 5))
        assert not torch.equal(new, parameter)
        parameter.data.copy_(new)
    torch.testing.assert_close(changed(x), model(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make, kind, reason", [pytest.param(*c[1:], id=c[0]) for c in KEPT])
def test_what_cannot_move_stays_and_says_why(make, kind, reason):
    model, module, weights = captured(make)
    x = inputs()
    groups = groups_of(module, kind)
    group = last_of(groups)
    assert group.reason == reason
    assert group.producers == ()
    store = {**weights}
    store |= {f"channels.{i}": vector(kind, i) for i in range(len(groups))}
    (y,) = run(module, store, (x,))
    torch.testing.assert_close(y, model(x), rtol=1e-12, atol=1e-12)


def test_groups_say_who_reads_what():
    """Gemma's formula is an offset; a Conv1D's channels are its rows."""
    (first, last) = channel_groups(models.GemmaNorm(), inputs())["scale"]
    assert (first.layers, first.channels, first.producers) == (("first",), K, ())
    assert first.reason == "an argument of the function: nothing before it is known"
    (change,) = last.producers
    assert isinstance(change.operation, gq.ScaleChannelsOp)
    assert change.operation.inverse is not None
    assert change.operation.offset is not None and change.operation.offset.value.data == 1
    weight, factor = torch.rand(K).double(), vector("scale", 0)
    expected = (1 + weight) / factor - 1
    torch.testing.assert_close(change.apply(weight, factor), expected, rtol=1e-14, atol=1e-14)
    groups = channel_groups(models.Conv(), inputs(), ["scale", "gather"])
    for kind in ("scale", "gather"):
        dims = {change.name: change.operation.axis for change in groups[kind][1].weights}
        assert dims == {"last.weight": 0}
    (pair,) = channel_groups(models.Pair(), inputs())["scale"]
    assert pair.layers == ("last", "other")


def test_rows_of_a_quantized_weight_move_whole():
    type_ = "tensor<8x16x!gq.block_scaled<1x16 : f16 : ui4, zero = f16, zero_mode = rescale>>"
    module = parse_ir(f"""
    func.func @forward(%x : tensor<?x16xf32>, %w : tensor<8x16xf32>) -> tensor<?x4xf32> {{
      %o = gq.weight @order : tensor<8xi64>
      %q = gq.weight @first.weight : {type_}
      %v = gq.weight @last.weight : tensor<4x8xf32>
      %h = gq.matmul_t %x, %q : (tensor<?x16xf32>, {type_}) -> tensor<?x8xf32>
      %a = fx.call "aten.silu.default"(%h) : (tensor<?x8xf32>) -> tensor<?x8xf32>
      %g = gq.gather_channels %a by %o along 1 : tensor<?x8xf32>, tensor<8xi64> -> tensor<?x8xf32>
      %y = gq.matmul_t %g, %v : (tensor<?x8xf32>, tensor<4x8xf32>) -> tensor<?x4xf32>
      func.return %y : tensor<?x4xf32>
    }}
    """)
    from gqc.quantizers import QUANTIZERS

    (op,) = (op for op in module.walk() if isinstance(op, gq.WeightOp) and "first" in op.key)
    quantized = gq.block_scaled(op.result)
    assert quantized is not None
    store: dict[str, Any] = {
        "first.weight": QUANTIZERS["rtn"](torch.randn(8, 16), quantized, "minmax"),
        "last.weight": torch.randn(4, 8),
        "order": torch.randperm(8),
    }
    args = torch.randn(3, 16), torch.zeros(8, 16)
    before = run(module, store, args)
    FoldChannels().apply(Context(), module)
    (gather,) = (op for op in module.walk() if isinstance(op, gq.GatherChannelsOp))
    assert gather.source.owner is op
    torch.testing.assert_close(run(module, store, args)[0], before[0], rtol=1e-6, atol=1e-6)
    FoldWeights().apply(Context(), module)
    torch.testing.assert_close(run(module, store, args)[0], before[0], rtol=1e-6, atol=1e-6)
    materialize(module, store)
    assert set(store) == {"first.weight", "last.weight"}
    torch.testing.assert_close(run(module, store, args)[0], before[0], rtol=1e-6, atol=1e-6)
