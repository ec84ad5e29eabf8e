"""gqc.quantize: each layer as its quantizer makes it under inputs from the quantized layers before,
computed here by running whole models."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from quantization.models import Experts, Skipping, gpt2, llama, texts, uneven_llama
from torch import nn

import gqc
from gqc.checkpoints.weights import Rotated, Transposed, dense
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.quantization import Quantized
from gqc.quantizers import QUANTIZERS, Statistics, column_order, microscaling
from gqc.quantizers import quantize as quantize_weight
from gqc.schemes import parse_scheme


def logits(model: nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def assert_same(a: Any, b: Any) -> None:
    """Two weights are equal to the bit."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, BlockScaled):
        assert a.type == b.type and torch.equal(a.codes, b.codes)
        assert torch.equal(a.scale.view(torch.uint8), b.scale.view(torch.uint8))
        assert (a.zero is None) == (b.zero is None)
        assert a.zero is None or torch.equal(a.zero, b.zero)
    else:
        assert_same(a.weight, b.weight)


def assert_same_models(a: Quantized, b: Quantized) -> None:
    assert a.names() == b.names()
    for name in a.names():
        assert_same(a.read(name), b.read(name))
        assert a.input_scale(name) == b.input_scale(name)
    assert a.facts == b.facts


def decoded(quantized: Quantized) -> nn.Module:
    """The model with every weight dequantized."""
    model = copy.deepcopy(quantized.model)
    for name, parameter in model.named_parameters():
        parameter.data = dense(quantized.read(name))
    return model


def statistics_by_hooks(model: Any, paths: Iterable[str], inputs: list) -> dict[str, Any]:
    """Statistics of layers from runs of the whole model, each layer's alone."""
    found = {path: Statistics.of(model.get_submodule(path).in_features) for path in paths}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, path=path: found[path].update(args[0])
        )
        for path in paths
    ]
    for example in inputs:
        logits(model, example)
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "scheme", ["int4_g32", "nvfp4", "int3_g64+hqq", "w4a16_mxfp4+scale_search"]
)
@pytest.mark.parametrize("build", [llama, gpt2])
def test_without_calibration_it_is_what_compile_does(build: Any, scheme: str) -> None:
    model, parsed = build(), parse_scheme(scheme)
    quantized = gqc.quantize(model, scheme=scheme, ignore=["*.1.*"])
    report = gqc.compile(model, scheme=scheme, ignore=["*.1.*"], target="cpu").report()
    rows = {row.layer: row for row in report.rows if not row.layer.endswith(".weight")}
    assert [fact.layer for fact in quantized.facts] == [*rows]
    for fact in quantized.facts:
        row, weight = rows[fact.layer], quantized.read(fact.weight)
        assert (row.decision == "kept") == (not fact.scheme)
        if not fact.scheme:
            assert row.reason == fact.reason and isinstance(weight, torch.Tensor)
            continue
        exact = model.get_parameter(fact.weight).detach()
        exact = exact.t() if build is gpt2 else exact
        expected = QUANTIZERS[parsed.quantizer](exact, parsed.type(), parsed.scale_rule)
        assert_same(weight, Transposed(expected) if build is gpt2 else expected)
        assert fact.sqnr == pytest.approx(row.sqnr)
        assert quantized.activation(fact.weight) == parsed.activation


def reorder(mlp: Any, scheme: Any, statistics: Statistics) -> torch.Tensor:
    """Put the hidden channels of a Llama's MLP into the order that its last layer is better in."""
    order = column_order([mlp.down_proj.weight.detach()], scheme, statistics)
    assert order is not None
    for layer, dim in ((mlp.gate_proj, 0), (mlp.up_proj, 0), (mlp.down_proj, 1)):
        layer.weight.data = layer.weight.data.index_select(dim, order)
    return order


def test_gptq_sees_what_quantized_blocks_give() -> None:
    model, inputs, scheme = uneven_llama(), texts(), parse_scheme("int3_g32+gptq")
    quantized = gqc.quantize(model, scheme="int3_g32+gptq", calibration=iter(inputs))
    for block in model.model.layers:
        paths = [
            p
            for p, m in model.named_modules()
            if isinstance(m, nn.Linear) and m in [*block.modules()]
        ]
        found = statistics_by_hooks(model, paths, inputs)
        down = next(path for path in paths if "down_proj" in path)
        found[down] = found[down].permuted(reorder(block.mlp, scheme, found[down]))
        for path, statistics in found.items():
            weight = model.get_submodule(path).weight
            expected = quantize_weight(weight, scheme, statistics)
            assert_same(quantized.read(f"{path}.weight"), expected)
            weight.data = expected.dequantize()


def test_static_scales_are_of_inputs_that_quantized_layers_give() -> None:
    model, inputs = llama(), texts()
    quantized = gqc.quantize(model, scheme="nvfp4_static", calibration=inputs)
    activation = parse_scheme("nvfp4_static").activation
    assert activation is not None
    first, second = "model.layers.0.mlp.down_proj", "model.layers.1.self_attn.q_proj"
    found = statistics_by_hooks(model, [first], inputs)[first].greatest.max()
    scale = quantized.input_scale(f"{first}.weight")
    assert scale is not None and scale.shape == () and scale == found / (448 * 6)
    for path, module in model.model.layers[0].named_modules():
        if isinstance(module, nn.Linear):
            name = f"model.layers.0.{path}.weight"
            module.weight.data = dense(quantized.read(name))
            whole = quantized.input_scale(name)
            module.register_forward_pre_hook(
                lambda module, args, whole=whole: microscaling(
                    args[0], activation.type(3), "amax", whole
                ).dequantize()
            )
    found = statistics_by_hooks(model, [second], inputs)[second].greatest.max()
    scale = quantized.input_scale(f"{second}.weight")
    assert scale is not None
    torch.testing.assert_close(scale, found / (448 * 6))


@pytest.mark.parametrize("scheme", ["int8_g32+awq", "mxint8+smoothquant"])
def test_factors_fold_and_leave_the_model_what_it_was(scheme: str) -> None:
    model, inputs = llama(), texts()
    quantized = gqc.quantize(model, scheme=scheme, calibration=inputs)
    assert not [
        fact
        for fact in quantized.facts
        if fact.scheme and fact.reason not in ("", "no factor is better than none")
    ]
    changed = [
        n
        for n, p in model.named_parameters()
        if "norm" in n and not torch.equal(p, dense(quantized.read(n)))
    ]
    assert len(changed) >= 3 and "model.norm.weight" not in changed
    exact = logits(model, inputs[0])
    error = (logits(decoded(quantized), inputs[0]) - exact).norm() / exact.norm()
    assert error < 0.01
    for name, parameter in model.named_parameters():
        if name not in changed:
            assert quantized.model.get_parameter(name).data_ptr() == parameter.data_ptr()


@pytest.mark.parametrize(("text", "by_awq"), [("int3_g32", 0.8), ("w4a16_mxfp4", 0.95)])
def test_calibration_makes_outputs_better(text: str, by_awq: float) -> None:
    """Of inputs that calibration has not seen: by AWQ, by GPTQ, and best by both."""
    model, inputs = llama(), texts(12)
    exact = [logits(model, x) for x in inputs[8:]]

    def error(scheme: str, calibration: Any = None) -> float:
        found = decoded(gqc.quantize(model, scheme=scheme, calibration=calibration))
        pairs = zip(inputs[8:], exact, strict=True)
        return sum(float((logits(found, x) - y).square().sum()) for x, y in pairs)

    plain = error(text)
    awq, gptq, both = (error(f"{text}+{how}", inputs[:8]) for how in ("awq", "gptq", "awq+gptq"))
    assert awq < by_awq * plain and gptq < 0.6 * plain
    assert both < awq


@pytest.mark.parametrize(
    "scheme", ["int4_g32+awq+gptq", "mxfp4+hadamard+gptq", "nvfp4_static+smoothquant"]
)
def test_compile_runs_what_quantize_gives(scheme: str) -> None:
    model, inputs = llama(), texts()
    compiled = gqc.compile(model, scheme=scheme, calibration=iter(inputs), target="cpu")
    quantized = gqc.quantize(model, scheme=scheme, calibration=inputs)
    again = gqc.compile(quantized.model, weights=quantized, target="cpu")
    assert torch.equal(logits(compiled, inputs[0]), logits(again, inputs[0]))
    reference, parsed = decoded(quantized), parse_scheme(scheme)
    for path, module in reference.named_modules():
        if isinstance(module, nn.Linear) and parsed.activation and "lm_head" not in path:
            from gqc.quantization.part import input_quantizer

            weight = quantized.read(f"{path}.weight")
            scale = quantized.input_scale(f"{path}.weight")
            hook = input_quantizer(parsed.activation, weight, scale)
            module.register_forward_pre_hook(hook, with_kwargs=True)
    exact = logits(reference, inputs[0])
    error = (logits(compiled, inputs[0]) - exact).norm() / exact.norm()
    assert error < (0.02 if parsed.activation else 1e-5)  # a rounded input may tip
    methods = {row.method for row in compiled.report().rows if row.decision != "kept"}
    assert methods == {" ".join((*parsed.transforms, parsed.quantizer, parsed.scale_rule))}


def test_rotated_weights_are_the_models() -> None:
    model = llama()
    quantized = gqc.quantize(model, scheme="w8a16_mxfp8+hadamard")
    name = "model.layers.0.mlp.up_proj.weight"
    weight = quantized.read(name)
    assert isinstance(weight, Rotated) and weight.block == 32
    exact = model.get_parameter(name)
    assert (dense(weight) - exact).norm() / exact.norm() < 0.05
    facts = gqc.quantize(gpt2(), scheme="w8a16_mxfp8+hadamard").facts
    assert {fact.reason for fact in facts if fact.scheme} == {"a Conv1D is not rotated"}


def test_two_runs_are_equal_to_the_bit() -> None:
    model, options = (
        llama(),
        {"scheme": "mxfp4+smoothquant+gptq", "calibration": texts(), "seed": 3},
    )
    assert_same_models(gqc.quantize(model, **options), gqc.quantize(model, **options))


def test_layers_that_no_input_reaches_are_told() -> None:
    model, inputs = (
        Experts(),
        [torch.randn(5, 32), (torch.randn(3, 7, 32),), {"x": torch.randn(1, 32)}],
    )
    quantized = gqc.quantize(model, scheme="int4_g32+gptq", calibration=inputs)
    facts = {fact.layer: fact for fact in quantized.facts}
    assert len(facts) == 14
    for path, fact in facts.items():
        reached = not path.endswith(".1")
        assert fact.rows == (27 if reached else 0)
        assert fact.reason == ("" if reached else "no calibration input reached it")
        assert (fact.output_sqnr is not None) == reached
    scheme, path = parse_scheme("int4_g32+scale_search"), "layers.1.up.1"
    expected = quantize_weight(model.get_parameter(f"{path}.weight"), scheme)
    assert_same(quantized.read(f"{path}.weight"), expected)
    assert "no calibration input reached it" in str(quantized)
    with pytest.warns(UserWarning, match=r"reached layers\.0\.gate\.1, .*: the tensor .* dynamic"):
        quantized = gqc.quantize(model, scheme="nvfp4_static", calibration=inputs)
    for path in facts:
        scale = quantized.input_scale(f"{path}.weight")
        activation = quantized.activation(f"{path}.weight")
        assert activation is not None
        assert activation.static == (scale is not None) == (not path.endswith(".1"))
    x = torch.randn(6, 32)
    with pytest.warns(UserWarning, match="dynamic"):
        compiled = gqc.compile(model, (x,), scheme="nvfp4_static", calibration=inputs)
    assert compiled(x).isfinite().all()


def test_layers_outside_of_blocks_see_their_inputs() -> None:
    model, inputs = Experts(), [torch.randn(40, 32)]
    quantized = gqc.quantize(model, scheme="int3_g32+gptq", calibration=inputs)
    found = Statistics.of(32)
    found.update(inputs[0])
    scheme = parse_scheme("int3_g32+gptq")
    assert_same(quantized.read("early.weight"), quantize_weight(model.early.weight, scheme, found))
    model.late.register_forward_pre_hook(lambda module, args: last.update(args[0]))
    last, exact = Statistics.of(32), model.late.weight
    for name, parameter in model.named_parameters():
        parameter.data = dense(quantized.read(name)) if "late" not in name else parameter.data
    model(inputs[0])
    assert_same(quantized.read("late.weight"), quantize_weight(exact, scheme, last))


def test_blocks_that_are_no_chain_are_calibrated_as_a_whole() -> None:
    model, inputs = Skipping(), [torch.randn(50, 32)]
    with pytest.warns(UserWarning, match=r"layers\.0 and the blocks after it are not called one"):
        quantized = gqc.quantize(model, scheme="int3_g32+gptq", calibration=inputs)
    found = Statistics.of(32)
    model.layers[2].register_forward_pre_hook(lambda module, args: found.update(args[0]))
    model(inputs[0])
    expected = quantize_weight(
        model.get_parameter("layers.2.weight"), parse_scheme("int3_g32+gptq"), found
    )
    assert_same(quantized.read("layers.2.weight"), expected)


def test_a_factor_that_does_not_fold_is_told() -> None:
    quantized = gqc.quantize(gpt2(), scheme="int4_g32+awq", calibration=texts())
    reasons = {fact.layer.removeprefix("transformer.h.0."): fact.reason for fact in quantized.facts}
    assert reasons["attn.c_attn"] == reasons["mlp.c_fc"] == ""
    assert "aten.tanh.default computes it" in reasons["mlp.c_proj"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scheme": "int4_g32+gptq"}, r"14 layers \(model\..*, …\) have schemes that need calib"),
        ({"scheme": "int4_g32+awq", "calibration": []}, "the inputs given are none"),
        ({"scheme": "int4_g32", "calibration": texts()}, "no scheme makes use of them"),
        ({"scheme": "int4_g48"}, "unknown scheme"),
        (
            {"scheme": "int4_g128"},
            r"K \(the second dimension\) is not divisible by the group in 12 l",
        ),
        ({"scheme": {"*.nothing": "int4_g32"}}, r"no linear layer matches '\*\.nothing'"),
    ],
)
def test_what_is_wrong_is_told_before_any_work(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GqcError, match=message):
        gqc.quantize(llama(), **options)


def test_inputs_and_weights_that_are_no_numbers_are_told() -> None:
    model = Experts()
    with pytest.raises(GqcError, match="early: its calibration inputs hold inf or NaN"):
        gqc.quantize(model, scheme="int4_g32+gptq", calibration=[torch.full((2, 32), torch.nan)])
    model.late.weight.data[0, 0] = torch.nan
    with pytest.raises(GqcError, match=r"late: weight \[32, 32\]: the weight holds inf or NaN"):
        gqc.quantize(model, scheme="int4_g32")
    with pytest.raises(GqcError, match="weights are on the meta device"):
        gqc.quantize(Experts().to("meta"), scheme="int4_g32")
