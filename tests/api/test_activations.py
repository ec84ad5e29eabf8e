"""Schemes that quantize activations, end to end: against torch on fake-quantized x and w."""

from __future__ import annotations

import copy
from itertools import cycle
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.errors import GqcError
from gqc.quantizers import microscaling
from gqc.schemes import MX_ELEMENTS, PRESETS, ROUNDINGS, Scheme

SCHEMES = [*MX_ELEMENTS, "nvfp4", "mxfp8_mxfp6", "mxfp8_mxfp4", "mxint8_mxfp4_even", "mxfp4_rceil"]
TOLERANCE = 1e-6
"""Of the Euclidean norm: some roundings of float32."""


def fake(x: torch.Tensor, scheme: Scheme, tensor_scale: torch.Tensor | None = None) -> Any:
    """x quantized and dequantized, in float64."""
    rows = x.flatten(0, -2)
    quantized = microscaling(rows, scheme.type(), scheme.scale_rule, tensor_scale)
    return quantized.dequantize(torch.float64).view_as(x)


class FakeLinear(nn.Module):
    """A linear layer of fake-quantized operands, in float64."""

    def __init__(self, layer: nn.Linear, scheme: Scheme, x_scale: torch.Tensor | None) -> None:
        super().__init__()
        assert scheme.activation is not None
        self.weight, self.bias = fake(layer.weight, scheme), layer.bias.double()
        self.activation, self.x_scale = scheme.activation, x_scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = fake(x, self.activation, self.x_scale)
        return nn.functional.linear(x, self.weight, self.bias)


def reference(model: nn.Module, name: str, scales: dict[str, torch.Tensor] | None = None) -> Any:
    """A copy in float64 whose linear layers are fake-quantized, under static scales by name."""
    new = copy.deepcopy(model).double()
    for path, layer in model.named_modules():
        if isinstance(layer, nn.Linear):
            fake_layer = FakeLinear(layer, PRESETS[name], (scales or {}).get(path))
            parent, _, leaf = path.rpartition(".")
            setattr(new.get_submodule(parent), leaf, fake_layer)
    return new


def close(y: torch.Tensor, truth: torch.Tensor) -> bool:
    return bool((y.double() - truth).norm() <= TOLERANCE * truth.norm())


@pytest.mark.parametrize(
    ("scheme", "mode"),
    [*zip(SCHEMES, cycle(("layers", "whole")), strict=False), ("mxfp8", "whole")],
)
def test_computes_the_fake_quantized_model(scheme, mode, compiled, inputs):
    model, result = compiled("mlp", mode, scheme)
    exact = reference(model, scheme)
    for case in inputs["mlp"]:
        truth = exact(case["x"].double())
        assert close(result(**case), truth)
    assert not close(model(**case), truth), "quantized to nothing else"


PAIRS = [name for name in PRESETS if not name.endswith((*filter(None, ROUNDINGS), "_static"))]
"""One format of weights alone, of weights and activations, and every two formats."""


@pytest.mark.parametrize("scheme", PAIRS)
def test_every_pair_with_odd_rows_and_columns_and_a_tail_of_k(scheme):
    torch.manual_seed(0)
    columns = 160 if (PRESETS[scheme].group or 1) <= 32 else 384
    layer = nn.Linear(columns, 37)
    result = gqc.compile(layer, scheme=scheme, target="cpu")
    activation = PRESETS[scheme].activation
    for rows in (1, 7):
        x = torch.randn(rows, columns)
        seen = x.double() if activation is None else fake(x, activation)
        weight = fake(layer.weight, PRESETS[scheme])
        truth = nn.functional.linear(seen, weight, layer.bias.double())
        bound = 2.0**-23 * (
            nn.functional.linear(seen.abs(), weight.abs(), layer.bias.abs().double())
        )
        assert ((result(x).double() - truth).abs() <= 4 * bound).all()
        assert not ((layer(x).double() - truth).abs() <= 4 * bound).all()


@pytest.mark.parametrize(
    ("scheme", "dtype"),
    [
        ("mxfp8", torch.bfloat16),
        ("mxint8", torch.float16),
        ("mxfp4", torch.bfloat16),
        ("nvfp4", torch.float16),
    ],
)
def test_half_precision(scheme, dtype):
    """A layer may be off by the rounding of its result alone."""
    torch.manual_seed(0)
    layer = nn.Linear(64, 48).to(dtype)
    x = torch.randn(2, 5, 64, dtype=dtype)
    y = gqc.compile(layer, scheme=scheme, target="cpu")(x)
    truth = FakeLinear(layer, PRESETS[scheme], None)(x)
    assert y.dtype == dtype
    torch.testing.assert_close(y, truth.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize("scheme", ["mxfp8_ceil", "mxint8_rceil", "mxfp8_mxfp4_ceil"])
def test_float16_activations_may_be_rounded_up_beyond_float16(scheme):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48).half()
    layer.weight.data *= 2.0**-8
    x = torch.where(torch.rand(3, 64) < 0.5, 65504.0, -65504.0).half()
    x[1] *= 2.0**-14
    y = gqc.compile(layer, scheme=scheme, target="cpu")(x)
    activation = PRESETS[scheme].activation
    assert activation is not None
    assert (fake(x, activation).abs().amax(1) > 65504).tolist() == [
        True,
        False,
        True,
    ]
    truth = FakeLinear(layer, PRESETS[scheme], None)(x)
    torch.testing.assert_close(y.double(), truth, rtol=2.0**-10, atol=1e-4)


# Static scales


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_static_scales_are_those_of_all_calibration_inputs(mode, build, inputs):
    model = build("mlp")
    x = inputs["mlp"][0]["x"]
    calibration = [x, (3 * x,), {"x": x}, ((), {"x": 2 * x})]
    example = x if mode == "whole" else None
    result = gqc.compile(model, example, scheme="nvfp4_static", calibration=calibration)
    up = 3 * x.abs().amax()
    middle = [model.norm(model.up(n * x)) for n in (1, 2, 3)]
    down = torch.stack([nn.functional.gelu(h).abs().amax() for h in middle]).amax()
    scales = {name: (amax / (448 * 6)).detach() for name, amax in (("up", up), ("down", down))}
    exact = reference(model, "nvfp4_static", scales)
    for case in inputs["mlp"]:
        assert close(result(**case), exact(case["x"].double()))


def test_static_scales_of_a_language_model(build, inputs):
    """Layers that share an input keep scales of their own; what is no linear layer has none."""
    model = build("llama")
    result = gqc.compile(
        model, scheme="nvfp4_static", target="cpu", calibration=inputs["llama"], ignore=["*.v_proj"]
    )
    scaled = {name for name in result.state_dict() if name.endswith("input_scale")}
    layers = {row.layer for row in result.report().rows if row.activation}
    assert len(layers) == 2 * 6
    assert scaled == {f"{layer}.input_scale" for layer in layers}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scheme": "nvfp4_static"},
            r"2 layers \(up, down\) have schemes that need calib.*give calibration=",
        ),
        (
            {"scheme": "nvfp4_static", "calibration": []},
            r"2 layers \(up, down\) have .* the inputs given are none",
        ),
        ({"scheme": "int4_g32", "calibration": []}, "calibration inputs are given, but no scheme"),
    ],
    ids=["none", "empty", "needless"],
)
def test_calibration_that_is_wrong(options, message, build):
    with pytest.raises(GqcError, match=message):
        gqc.compile(build("mlp"), target="cpu", **options)


class Skips(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(input=x)


def test_a_layer_that_calibration_does_not_reach():
    x = torch.randn(2, 64)
    options: dict[str, Any] = {"scheme": "nvfp4_static", "target": "cpu", "calibration": [x]}
    with pytest.warns(UserWarning, match="input reached unused: the tensor scale .* is dynamic"):
        state = gqc.compile(Skips(), **options).state_dict()
    assert "used.input_scale" in state and "unused.input_scale" not in state
    result = gqc.compile(Skips(), ignore=["unused"], **options)
    assert "used.input_scale" in result.state_dict()


def test_a_graph_cannot_be_calibrated(build, inputs):
    x = inputs["mlp"][0]["x"]
    program = torch.export.export(build("mlp"), (x,))
    options: dict[str, Any] = {"scheme": "nvfp4_static", "target": "cpu"}
    for model in (program, program.module()):
        example = x if isinstance(model, nn.Module) else None
        with pytest.raises(GqcError, match=r"only an nn\.Module can be calibrated"):
            gqc.compile(model, example, calibration=[x], **options)
        with pytest.raises(GqcError, match=r"no calibrated up\.input_scale, down\.input_scale"):
            gqc.compile(model, example, **options)


# What a compiled model is


def quantizers(model: Any) -> list[Any]:
    """Calls that quantize activations."""
    return model.graph.find_nodes(op="call_function", target=torch.ops.gqc.quantize.default)


@pytest.mark.parametrize("scheme", ["mxfp8", "nvfp4"])
def test_layers_share_a_quantized_input(scheme, compiled):
    """Of a block's seven layers, q, k and v read one input, gate and up another."""
    _, result = compiled("llama", "whole", scheme)
    assert len(quantizers(result)) == 2 * 4
    scales = torch.ops.gqc.tensor_scale.default
    dynamic = result.graph.find_nodes(op="call_function", target=scales)
    assert len(dynamic) == (2 * 4 if scheme == "nvfp4" else 0)


def test_a_mixed_scheme_quantizes_one_input_twice(build):
    x = torch.randn(2, 64)
    model = nn.ModuleDict({name: nn.Linear(64, 64) for name in "abcd"})
    model.forward = lambda x: [layer(x) for layer in model.values()]  # type: ignore[method-assign]
    names = {"a": "mxfp8", "b": "mxfp8_mxfp4", "c": "mxfp4", "d": "w4a16_mxfp4"}
    result = gqc.compile(model, x, scheme=names, target="cpu")
    assert len(quantizers(result)) == 2
    for y, (path, name) in zip(result(x), names.items(), strict=True):
        layer: Any = model[path]
        scheme = PRESETS[name]
        seen = x.double() if scheme.activation is None else fake(x, scheme.activation)
        assert close(y, nn.functional.linear(seen, fake(layer.weight, scheme), layer.bias.double()))


@pytest.mark.parametrize("scheme", ["mxfp8", "nvfp4", "nvfp4_static"])
def test_the_report_says_what_activations_become(scheme, build, inputs):
    given = inputs["mlp"] if scheme == "nvfp4_static" else None
    result = gqc.compile(build("mlp"), scheme=scheme, target="cpu", calibration=given)
    says = {
        "mxfp8": "1x32 : f8E8M0FNU : f8E4M3FN",
        "nvfp4": "1x16 : f8E4M3FN : f4E2M1FN, global = f32 (dynamic)",
        "nvfp4_static": "1x16 : f8E4M3FN : f4E2M1FN, global = f32 (static)",
    }[scheme]
    rows = result.report().rows
    assert {row.layer: row.activation for row in rows} == {"up": says, "down": says}
    text = str(result.report())
    assert "activations" in text and says.split(",")[0] in text


def test_the_report_has_no_column_without_them(compiled):
    assert "activations" not in str(compiled("mlp", "whole", "w8a16_mxfp8")[1].report())


@pytest.mark.parametrize("scheme", ["mxfp8_mxfp4", "nvfp4", "nvfp4_static"])
def test_survives_copies_files_and_export(scheme, build, inputs, tmp_path):
    x = inputs["mlp"][0]["x"]
    given = inputs["mlp"] if scheme == "nvfp4_static" else None
    result = gqc.compile(build("mlp"), x, scheme=scheme, target="cpu", calibration=given)
    expected = result(x)
    torch.save(result, tmp_path / "model.pt")
    torch.save(result.state_dict(), tmp_path / "weights.pt")
    torch.export.save(torch.export.export(result, (x,)), tmp_path / "model.pt2")
    other = copy.deepcopy(result)
    for tensor in other.state_dict().values():
        tensor.view(torch.uint8).zero_()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(tmp_path / "weights.pt"))
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    exported = torch.export.load(tmp_path / "model.pt2").module()
    for each in (other, loaded, exported):
        assert torch.equal(each(x), expected)


@pytest.mark.parametrize("scheme", ["mxfp8", "nvfp4"])
def test_layers_alone_still_generate(scheme, compiled, inputs):
    """Torch reads `.weight` of a layer for its dtype and shape, and gets what the codes say."""
    model, result = compiled("llama", "layers", scheme)
    path = "model.layers.0.self_attn.q_proj"
    weight = result.get_submodule(path).weight
    exact = model.get_submodule(path).weight
    assert (weight.dtype, weight.shape) == (exact.dtype, exact.shape)
    assert close(weight, fake(exact, PRESETS[scheme]))
    ids = inputs["llama"][0]["input_ids"][:1]
    new = result.generate(ids, max_new_tokens=4, do_sample=False)
    seen = torch.cat([ids, result(ids).logits[:, -1].argmax(-1, keepdim=True)], 1)
    assert torch.equal(new[:, : seen.shape[1]], seen)


@pytest.mark.parametrize("whole", [False, True])
def test_a_linear_alone_has_a_static_scale(whole: bool) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(64, 32).eval(), torch.randn(5, 64)
    compiled = gqc.compile(layer, x if whole else None, scheme="nvfp4_static", calibration=[x])
    assert "input_scale" in compiled.state_dict()
    assert torch.cosine_similarity(compiled(x).flatten(), layer(x).flatten(), 0) > 0.98
