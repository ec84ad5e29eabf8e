"""Bad input to gqc.compile: an error before any work on weights that names every layer."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.errors import GqcError
from gqc.quantizers import QUANTIZERS
from gqc.schemes import Scheme


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fail the test if a weight is quantized."""

    def quantizer(*_: object) -> None:
        pytest.fail("a weight was quantized before the error")

    monkeypatch.setitem(QUANTIZERS, "rtn", quantizer)  # type: ignore[arg-type]


@pytest.fixture(params=["whole", "layers"])
def compile_model(request, no_work):
    """gqc.compile in both modes."""

    def compile_model(model: nn.Module, k: int, **options):
        example = torch.ones(2, k) if request.param == "whole" else None
        return gqc.compile(model, example, **options)

    return compile_model


def linears(*widths: int) -> nn.Sequential:
    return nn.Sequential(*(nn.Linear(k, n) for k, n in pairwise(widths)))


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("int4", "unknown scheme 'int4'.*int<bits>_g<group>"),
        ("int9_g32", "unknown scheme 'int9_g32'.*bits are"),
        ("int4_g48", "unknown scheme 'int4_g48'.*groups"),
        ("nf4_g32", "unknown scheme 'nf4_g32'"),
        ("int1_g32_sym", "one signed bit"),
        ("ui4 g48", "a group of 48"),
        ("ui4 gx", "scheme 'ui4 gx' cannot be read"),
        ("ui4 g32 colour=red", "cannot be read.*colour"),
        ({"0": "int4_g32", "1": "int4"}, "unknown scheme 'int4'"),
    ],
)
def test_unknown_schemes(scheme, message, no_work):
    with pytest.raises(GqcError, match=message):
        gqc.compile(linears(64, 64, 64), scheme=scheme)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group": 48}, "a group of 48.*128"),
        ({"quantizer": "nonsense"}, "unknown quantizer 'nonsense'.*rtn"),
        ({"scale_rule": "nonsense"}, "unknown scale_rule 'nonsense'.*no_clip"),
        ({"zero_mode": "original"}, "zero_mode 'original'.* zero None: give both"),
        ({"zero": "f16"}, "zero_mode 'none'.* zero 'f16': give both"),
    ],
)
def test_schemes_that_make_no_sense(options, message):
    with pytest.raises(GqcError, match=message):
        Scheme(**{"element": "si4", "group": 32, **options})


@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        (Scheme("ui9", 32), "'ui9' is no element format"),
        (Scheme("ui4", 32, zero_mode="quantized", zero="ui3"), "C5: .*zero point.*ui4.*ui3"),
        (
            Scheme("f6E3M2FN", 32),
            "(?s)2 layers.*0: no kernel reads scales of f16 with f6E3.*1: no k",
        ),
        (Scheme("f4E2M1FN", 32), "(?s)2 layers.*0: no kernel reads scales of f16 with f4.*1: no k"),
        (Scheme("si4", 32, scale="f8E8M0FNU"), "(?s)cannot do 2 layers.*0: no kernel reads.*1: "),
    ],
    ids=str,
)
def test_formats_without_a_kernel(scheme, message, no_work):
    with pytest.raises(GqcError, match=message):
        gqc.compile(linears(64, 64, 64), scheme=scheme, target="cpu")


def test_unknown_target(no_work):
    with pytest.raises(GqcError, match=r"unknown target 'sm_70': choose one of auto, cpu, sm_80"):
        gqc.compile(linears(64, 64), target="sm_70")


def test_unknown_patterns(compile_model):
    """Every pattern that matches nothing is named, and what there is to match."""
    with pytest.raises(GqcError) as error:
        compile_model(
            linears(64, 64, 64), 64, scheme={"mlp.*": "int4_g32", "*": "int4_g32"}, ignore=["head"]
        )
    assert "no linear layer matches 'head', 'mlp.*'" in str(error.value)
    assert "the 2 layers are 0, 1" in str(error.value)


def test_groups_that_do_not_divide(compile_model):
    """Every layer is named with its shape, and a group that would do."""
    with pytest.raises(GqcError) as error:
        compile_model(linears(80, 64, 48, 8), 80, scheme="int4_g32")
    lines = str(error.value).splitlines()
    assert "2 layers" in lines[0]
    assert lines[1:3] == ["  0: weight [64, 80], group 32", "  2: weight [8, 48], group 32"]
    assert "a group of 16 divides all of them" in lines[3] and "ignore" in lines[3]


def test_the_remedies_for_ragged_groups_work():
    model = linears(80, 64, 48, 8)
    x = torch.randn(3, 80)
    row = {"0": "int4_row", "2": "int4_row", "1": "int4_g32"}
    for options in ({"scheme": "int4_g16"}, {"scheme": row}, {"ignore": ["0", "2"]}):
        compiled = gqc.compile(model, **{"scheme": "int4_g32", **options})
        assert 0 < (compiled(x) - model(x)).norm() < 0.5 * model(x).norm()


def test_activations_that_the_target_does_not_multiply(compile_model):
    with pytest.raises(GqcError) as error:
        compile_model(
            linears(64, 64, 64), 64, scheme={"0": "int4_g32", "*": "int8_g32"}, target="sm_90"
        )
    lines = str(error.value).splitlines()
    assert lines[0] == "target sm_90 cannot do 2 layers:"
    for line, layer in zip(lines[1:], ("0", "1"), strict=True):
        assert line.startswith(f"  {layer}: its activations are f32") and "model.bfloat16()" in line


def test_dynamic_shapes_without_inputs(no_work):
    with pytest.raises(GqcError, match="dynamic_shapes are those of example_inputs: give these"):
        gqc.compile(linears(64, 64), scheme="int4_g32", dynamic_shapes=({0: None},))


@pytest.mark.parametrize("name", ["compilation", "ir", "kernels", "report"])
def test_names_that_a_compiled_model_needs(name, compile_model):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(64, 64))
    with pytest.raises(GqcError, match=f"the model has parts called {name}, .*other names"):
        compile_model(model, 64, scheme="int4_g32")


@pytest.mark.parametrize("name", ["source", "tensor", "weight", "bias"])
def test_names_that_are_free(name):
    model = nn.Sequential()
    model.add_module(name, nn.Linear(64, 64))
    x = torch.randn(2, 64)
    for example in (None, x):
        compiled = gqc.compile(model, example, scheme="int8_g32", target="cpu")
        assert torch.allclose(compiled(x), model(x), atol=0.05)


def test_a_model_compiled_before():
    model, x = linears(64, 64, 8), torch.randn(2, 64)
    first = gqc.compile(model, scheme={"0": "int8_g32"}, target="cpu")
    both = gqc.compile(first, scheme="int8_g32", target="cpu")
    whole = gqc.compile(first, x, scheme="int8_g32", target="cpu")
    for each in (both, whole):
        assert [row.layer for row in each.report().rows if row.decision != "kept"] == ["1"]
        assert torch.allclose(each(x), model(x), atol=0.05)


@pytest.mark.parametrize("model", ["SmolLM2-135M", None])
def test_what_is_no_model(model):
    for example in (None, torch.ones(2)):
        with pytest.raises(GqcError, match=f"cannot compile a {type(model).__name__}"):
            gqc.compile(model, example)


def test_no_linear_layer():
    with pytest.raises(GqcError, match="nothing to compile"):
        gqc.compile(nn.Sequential(nn.ReLU(), nn.LayerNorm(8)))


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.full((8, 64), float("nan")), r"^1: weight \[8, 64\]: .*inf or NaN"),
        (torch.full((8, 64), float("inf")), r"^1: weight \[8, 64\]: .*inf or NaN"),
        (
            1e9 * torch.eye(8, 64),
            r"^1: weight \[8, 64\]: .*overflows f16: .* (scale|zero)=bf16",
        ),
    ],
    ids=["nan", "inf", "overflow"],
)
def test_weights_that_cannot_be_quantized(weight, message):
    model = linears(64, 64, 8)
    model[1].weight = nn.Parameter(weight)
    with pytest.raises(GqcError, match=message):
        gqc.compile(model, scheme="int4_g32")


@pytest.mark.parametrize("scheme", ["int4_g32", "w4a16_mxfp4", "w4a16_nvfp4", "mxfp8", "w8a8_g32"])
@pytest.mark.parametrize("call", [gqc.compile, gqc.quantize])
@pytest.mark.parametrize("bad", [float("nan"), float("-inf")])
def test_inf_and_nan_in_weights_are_refused_in_all_schemes(call, scheme, bad):
    model: Any = linears(64, 64, 64, 64)
    for i in (0, 2):
        model[i].weight.data[3, 5] = bad
    words = r"(?s)^2 weights cannot be quantized:.*0: weight \[64, 64\]: .*inf or NaN.*2: weight"
    with pytest.raises(GqcError, match=words):
        call(model, scheme=scheme)


@pytest.mark.parametrize("scheme", ["int4_g32+awq+gptq", "w4a16_mxfp4+scale_search", "mxfp8"])
def test_inf_and_nan_in_weights_are_told_before_inputs_of_other_layers(scheme):
    model: Any = linears(64, 64, 64, 64)
    for i in (0, 2):
        model[i].weight.data[3, 5] = float("nan")
    words = r"(?s)^2 weights cannot be quantized:.*0: weight .*inf or NaN.*2: weight .*inf or NaN$"
    with pytest.raises(GqcError, match=words):
        gqc.compile(model, scheme=scheme, calibration=[torch.randn(8, 64)])


def test_a_row_of_tiny_weights_is_no_reason_to_refuse():
    torch.manual_seed(0)
    model: Any = linears(64, 32)
    model[0].weight.data[3] *= 1e-7
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = gqc.compile(model, scheme="int8_g32")
    x = torch.randn(5, 64)
    error = (compiled(x) - model(x)).abs().amax(0)
    assert 0 < error[3] < 64 * 4 * 2.0**-25 and error.max() < 0.05


def test_a_layer_of_tiny_weights_is_told():
    model = linears(64, 64, 64)
    for parameter in model.parameters():
        parameter.data *= 1e-8
    words = r"(?s)0: the weight is at most 1.2e-09, near .* scale=f32 zero=f32\n  1: the weight"
    with pytest.warns(UserWarning, match=words):
        gqc.compile(model, scheme="int8_g32")
    facts = gqc.quantize(model, scheme="int8_g32").facts
    assert all("near the least scale in f16" in fact.note for fact in facts)
    quantized = gqc.quantize(model, scheme="int8_g32 scale=f32 zero=f32")
    assert all(fact.note == "" and (fact.sqnr or 0) > 40 for fact in quantized.facts)


def test_the_remedy_for_overflow_works():
    model = nn.Sequential(nn.Linear(64, 8))
    model[0].weight = nn.Parameter(1e9 * torch.eye(8, 64))
    wide = Scheme("si8", 32, scale="f32", scale_rule="restricted")
    compiled, x = gqc.compile(model, scheme=wide), torch.randn(3, 64)
    assert torch.allclose(compiled(x), model(x), rtol=1e-5)


def test_unknown_stage():
    compiled = gqc.compile(linears(64, 8), scheme="int4_g32")
    with pytest.raises(GqcError, match=r"no stage or pass is called 'tiles'.*grouped.*legalize"):
        compiled.ir("tiles")


def test_a_cpu_kernel_has_no_gpu_artifacts():
    kernel = gqc.compile(linears(64, 8), scheme="int4_g32", target="cpu").kernels[0]
    with pytest.raises(GqcError, match=f"{kernel.name} is a CPU kernel: see `assembly`"):
        _ = kernel.artifacts


def test_weights_that_are_not_loaded():
    model = nn.Sequential(nn.Linear(64, 64, device="meta"))
    with pytest.raises(GqcError, match=r"2 weights are on the meta device, 0\.weight first"):
        gqc.compile(model, scheme="int4_g32", target="cpu")


def test_a_model_without_linear_layers():
    with pytest.raises(GqcError, match="no linear layer"):
        gqc.compile(nn.Sequential(nn.ReLU()), (torch.ones(2, 3),), target="cpu")


def test_a_gpu_kernel_given_cpu_tensors():
    compiled = gqc.compile(
        nn.Sequential(nn.Linear(64, 64)).half(), scheme="int4_g32", target="sm_90"
    )
    with pytest.raises(GqcError, match="move the model and its inputs to the GPU"):
        compiled(torch.ones(2, 64, dtype=torch.float16))


def test_a_format_that_another_quantizer_makes():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 32))
    scheme = gqc.Scheme("f4E2M1FN", 32, scale="f8E8M0FNU")
    with pytest.raises(GqcError, match=r"(?s)2 weights cannot be quantized.* 0: .* 1: "):
        gqc.compile(model, scheme=scheme, target="cpu")


def test_a_scale_rule_of_another_quantizer():
    with pytest.raises(GqcError, match=r"unknown scale_rule 'minmax': choose one of floor, even"):
        gqc.Scheme("f4E2M1FN", 32, scale="f8E8M0FNU", quantizer="microscaling", scale_rule="minmax")
