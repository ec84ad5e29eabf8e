"""gqc.compile: what a compiled model computes, in both modes, and what of the model it keeps."""

from __future__ import annotations

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.utils import _pytree as pytree
from transformers import T5Config, T5EncoderModel
from transformers.pytorch_utils import Conv1D

import gqc
from gqc.frontend.export_fx import Symbols
from gqc.schemes import Scheme, parse_scheme

MODELS = ("mlp", "llama", "gpt2", "bert")
MODES = ("whole", "layers")

PRESETS = (
    *("int8_g32", "int4_g16", "int4_g32", "int4_g64", "int4_g128", "int4_g256", "int4_row"),
    *("int3_g32", "int2_g32", "int2_g16", "int1_g32", "int3_row"),
    *("int8_row_sym", "int8_g32_sym", "int4_g32_sym", "int3_g64_sym", "int2_g32_sym"),
)
SCHEMES = (
    Scheme("ui4", 32, zero_mode="original", zero="f16", scale_rule="minmax"),
    Scheme("ui4", 32, zero_mode="quantized", zero="ui4", scale_rule="minmax"),
    Scheme("ui3", 32, zero_mode="quantized", zero="ui3", scale_rule="minmax"),
    Scheme("ui4", 32, scale="bf16", zero_mode="rescale", zero="bf16", scale_rule="minmax"),
    Scheme("si4", 32, scale="f32", scale_rule="half"),
    Scheme("si4", 32, scale_rule="restricted"),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_computes_the_dequantized_model(name, mode, compiled, inputs, check, all_linears):
    model, result = compiled(name, mode)
    assert isinstance(result, fx.GraphModule if mode == "whole" else type(model))
    check(result, model, all_linears(model, "int4_g32"), inputs[name])


@pytest.mark.parametrize(
    ("name", "mode"), [("mlp", "whole"), *((name, "layers") for name in MODELS)]
)
def test_bfloat16(name, mode, build, inputs, check, all_linears):
    model = build(name).bfloat16()
    example = inputs[name][0]
    given = ((), {k: x.bfloat16() for k, x in example.items()}) if mode == "whole" else None
    compiled = gqc.compile(model, given, scheme="int4_g32", target="cpu")
    check(compiled, model, all_linears(model, "int4_g32"), inputs[name], factor=1.5)


@pytest.mark.parametrize("scheme", [*PRESETS, *SCHEMES], ids=str)
def test_schemes(scheme, check):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 72)).eval()
    compiled = gqc.compile(model, scheme=scheme)
    check(compiled, model, {"0": str(scheme)}, [{"input": torch.randn(5, 256)}])


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
def test_bfloat16_is_rounded_once(bits):
    """One layer: products and sums are float32, only the result is rounded to bfloat16."""
    torch.manual_seed(bits)
    layer = nn.Linear(128, 72).bfloat16()
    compiled = gqc.compile(nn.Sequential(layer), scheme=f"int{bits}_g32")
    x = torch.randn(7, 128).bfloat16()
    scheme = gqc.schemes.preset(f"int{bits}_g32")
    weight = gqc.quantizers.rtn(layer.weight, scheme.type(), scheme.scale_rule)
    exact = x.double() @ weight.dequantize(torch.float64).T + layer.bias.double()
    terms = x.double().abs() @ weight.dequantize(torch.float64).abs().T
    bound = exact.abs() * 2**-8 + terms * 2**-18
    with torch.no_grad():
        assert ((compiled(x).double() - exact).abs() / bound).max() <= 1


def test_scheme_map_and_ignore(build, inputs, check):
    model = build("llama")
    compiled = gqc.compile(
        model,
        scheme={"*.0.mlp.*": "int8_g32", "*.mlp.*": Scheme("si4", 64), "*_proj": "int3_g32"},
        ignore=["*.down_proj", "model.layers.1.self_attn.q_proj"],
    )
    expected = {
        **{f"model.layers.0.mlp.{p}_proj": "int8_g32" for p in ("gate", "up")},
        **{f"model.layers.1.mlp.{p}_proj": str(Scheme("si4", 64)) for p in ("gate", "up")},
        **{f"model.layers.0.self_attn.{p}_proj": "int3_g32" for p in "qkvo"},
        **{f"model.layers.1.self_attn.{p}_proj": "int3_g32" for p in "kvo"},
    }
    quantized = {row.layer for row in compiled.report().rows if row.decision != "kept"}
    assert quantized == set(expected)
    check(compiled, model, expected, inputs["llama"])


def test_scheme_map_whole(build, inputs, check):
    model = build("mlp")
    compiled = gqc.compile(
        model, ((), inputs["mlp"][0]), scheme={"up": "int8_g32", "d*": "int4_g64"}
    )
    check(compiled, model, {"up": "int8_g32", "down": "int4_g64"}, inputs["mlp"])
    kept = gqc.compile(model, ((), inputs["mlp"][0]), scheme={"up": "int8_g32"}, ignore="*o*")
    check(kept, model, {"up": "int8_g32"}, inputs["mlp"])


@pytest.mark.parametrize(
    ("name", "mode"), [("llama", "layers"), ("gpt2", "layers"), ("gpt2", "whole")]
)
def test_lm_head(name, mode, build, inputs, check, all_linears):
    """The head is quantized when asked for; an embedding that shares its weight stays exact."""
    model = build(name)
    example = ((), inputs[name][0]) if mode == "whole" else None
    compiled = gqc.compile(model, example, scheme="int8_g32", lm_head=True)
    check(compiled, model, {**all_linears(model, "int8_g32"), "lm_head": "int8_g32"}, inputs[name])


@pytest.mark.parametrize("mode", MODES)
def test_tied_weights_stay_tied(mode, compiled):
    model, result = compiled("gpt2", mode)
    embedding = result.get_parameter("transformer.wte.weight")
    assert result.get_parameter("lm_head.weight") is embedding
    assert embedding.data_ptr() == model.lm_head.weight.data_ptr()


@pytest.mark.parametrize("mode", MODES)
def test_a_tied_head_of_any_name_is_kept(mode):
    model = nn.Sequential(nn.Embedding(32, 64), nn.Linear(64, 64), nn.Linear(64, 32, bias=False))
    model[2].weight = model[0].weight
    ids = torch.arange(6).view(2, 3)
    compiled = gqc.compile(model, ids if mode == "whole" else None, scheme="int4_g32")
    rows = {row.layer: row for row in compiled.report().rows}
    assert rows["1"].decision != "kept"
    assert rows["2"].decision == "kept" and "its weight is shared with" in rows["2"].reason
    head = compiled.get_parameter("2.weight")
    assert head is compiled.get_parameter("0.weight") and torch.equal(
        head, model[0].get_parameter("weight")
    )


def test_layers_with_hooks_run_them():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)).eval()
    model[1].register_forward_hook(lambda m, x, y: y.mul(2))
    with pytest.warns(UserWarning, match="no plain nn.Linear: 1"):
        compiled = gqc.compile(model, scheme="int8_g32", target="cpu")
    x = torch.randn(3, 64)
    first, *others = compiled.report().rows
    assert (first.layer, first.decision) == ("0", "emulated")
    assert {row.decision for row in others} == {"kept"}
    assert all("more than a plain linear layer" in row.reason for row in others)
    assert torch.allclose(compiled(x), model(x), atol=0.05)


def test_layers_that_share_a_weight(check):
    """Two layers of one weight: quantized once under one scheme, apart under two."""
    first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second, first).eval()
    cases = [{"input": torch.randn(5, 64)}]
    one = gqc.compile(model, scheme="int4_g32")
    check(one, model, {"0": "int4_g32", "2": "int4_g32", "3": "int4_g32"}, cases)
    state = one.state_dict()
    assert not state["3.weight"].numel()
    assert len({t.data_ptr() for k, t in state.items() if "packed" in k}) == 1
    two = gqc.compile(model, scheme={"0": "int4_g32", "2": "int8_g32"})
    check(two, model, {"0": "int4_g32", "2": "int8_g32", "3": "int4_g32"}, cases)


def test_generate(compiled):
    """Greedy decoding with a key-value cache gives the tokens that the model without one gives."""
    _, result = compiled("llama", "layers")
    ids = torch.tensor([[1, 5, 9, 33, 8], [1, 7, 7, 61, 80]])
    options = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    tokens = result.generate(ids, **options)
    assert tokens.shape == (2, 17)
    with torch.no_grad():
        whole = result(tokens).logits  # without a cache
    assert torch.equal(whole[:, 4:-1].argmax(-1), tokens[:, 5:])


@pytest.mark.parametrize("kind", ["GraphModule", "ExportedProgram"])
def test_traced_models(kind, build, inputs, check, all_linears):
    model, (example, *others) = build("mlp"), inputs["mlp"]
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (example["x"],), dynamic_shapes=shapes)
    source = program if kind == "ExportedProgram" else program.module(check_guards=False)
    compiled = gqc.compile(source, scheme="int4_g32")
    assert isinstance(compiled, fx.GraphModule)
    check(compiled, model, all_linears(model, "int4_g32"), others)


@pytest.mark.parametrize("mode", MODES)
def test_the_model_is_not_changed(mode, build, inputs):
    model = build("gpt2")
    model.train()
    model.get_submodule("lm_head").eval()
    modes = {path: module.training for path, module in model.named_modules()}
    modules = dict(model.named_modules())
    tensors = dict(model.state_dict(keep_vars=True))
    before = {key: tensor.detach().clone() for key, tensor in tensors.items()}
    config = model.config.to_dict()
    example = ((), inputs["gpt2"][0]) if mode == "whole" else None
    gqc.compile(model, example, scheme="int4_g32", lm_head=True)
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(before)
    for key, tensor in after.items():
        assert tensor is tensors[key] and torch.equal(tensor, before[key])
    assert {path: module.training for path, module in model.named_modules()} == modes
    assert dict(model.named_modules()) == modules
    assert model.config.to_dict() == config
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_the_model_does_not_follow_the_compiled_one(mode, build, inputs):
    model = build("gpt2")
    example = ((), inputs["gpt2"][0]) if mode == "whole" else None
    compiled = gqc.compile(model, example, scheme="int4_g32")
    for parameter in compiled.parameters():
        parameter.data = parameter.data.double()
    compiled.requires_grad_(False)
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("mode", MODES)
def test_a_compiled_model_is_in_evaluation_mode(mode):
    model = nn.Sequential(nn.Linear(64, 64), nn.Dropout(0.5)).train()
    x = torch.ones(2, 64)
    compiled = gqc.compile(model, x if mode == "whole" else None, scheme="int4_g32")
    assert not any(module.training for module in compiled.modules()) and model[1].training
    assert torch.equal(compiled(x), compiled(x)) and (compiled(x) != 0).all()


@pytest.mark.parametrize("scheme", ["int4_g32", "int3_g32_sym", SCHEMES[1]], ids=str)
@pytest.mark.parametrize("layer", [nn.Linear(64, 40), nn.Linear(64, 40).bfloat16(), Conv1D(40, 64)])
def test_the_weight_of_a_compiled_layer(layer, scheme):
    compiled = gqc.compile(nn.Sequential(layer), scheme=scheme, target="cpu")
    exact = layer.weight.T if isinstance(layer, Conv1D) else layer.weight
    parsed = parse_scheme(str(scheme))
    exact = gqc.quantizers.rtn(exact, parsed.type(), parsed.scale_rule).dequantize()
    exact = (exact.T if isinstance(layer, Conv1D) else exact).to(layer.weight.dtype)
    attributes = {
        k: v for k, v in vars(layer).items() if k in ("in_features", "out_features", "nf")
    }
    for twin in (compiled, copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        weight = twin[0].weight
        assert weight.dtype == layer.weight.dtype and not weight.requires_grad
        assert torch.equal(weight, exact)
        assert attributes and attributes.items() <= vars(twin[0]).items()
        assert not twin[0].state_dict()["weight"].numel()


def test_a_compiled_layer_without_bias_has_none():
    compiled = gqc.compile(nn.Sequential(nn.Linear(64, 40, bias=False)), scheme="int4_g32")
    assert compiled[0].bias is None and "0.bias" not in compiled.state_dict()


@pytest.mark.parametrize("grad", [True, False])
def test_parents_that_read_the_weights_of_their_layers(grad):
    """nn.TransformerEncoderLayer, which multiplies by them without gradients, and T5."""
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()
    config = T5Config(vocab_size=96, d_model=64, d_kv=16, d_ff=128, num_layers=1, num_heads=4)
    t5 = T5EncoderModel(config).eval()
    with torch.set_grad_enabled(grad):
        for model, x in ((encoder, torch.randn(2, 5, 64)), (t5, torch.arange(10).view(2, 5))):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                compiled = gqc.compile(model, scheme="int8_g32", target="cpu")
            y, expected = (pytree.tree_leaves(m(x))[0] for m in (compiled, model))
            assert (y - expected).norm() < 0.02 * expected.norm()


def test_tables_of_the_ir_are_made_once(monkeypatch):
    made = []
    of = Symbols.of
    monkeypatch.setattr(Symbols, "of", lambda module: made.append(module) or of(module))
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(3)))
    gqc.compile(model, scheme="int4_g32", target="cpu")
    assert len(made) == 1


@pytest.mark.parametrize("mode", MODES)
def test_what_stays_dense_is_shared(mode, compiled):
    model, result = compiled("llama", mode)
    for name in ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"):
        assert result.get_parameter(name).data_ptr() == model.get_parameter(name).data_ptr()


def test_a_linear_alone(check):
    layer = nn.Linear(64, 40)
    for example in (None, torch.randn(2, 64)):
        compiled = gqc.compile(layer, example, scheme="int4_g32")
        assert not compiled.state_dict().get("weight", torch.empty(0)).numel()
        model, result = nn.Sequential(layer), nn.Sequential(compiled)
        check(result, model, {"0": "int4_g32"}, [{"input": torch.randn(5, 64)}])


# Inputs


@pytest.fixture(scope="module")
def layers() -> tuple[nn.Module, Any, Any]:
    """A model, it compiled whole, and its layers compiled."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 40), nn.Linear(40, 8))
    scheme = {"0": "int4_g32"}
    whole, parts = (gqc.compile(model, x, scheme=scheme) for x in (torch.randn(3, 64), None))
    return model, whole, parts


def test_empty_batch(layers):
    _, *compiled = layers
    for each in compiled:
        assert each(torch.empty(0, 64)).shape == (0, 8)


def test_inputs_that_are_not_contiguous(layers):
    _, *compiled = layers
    base = torch.randn(64, 10)
    for x in (base.t(), base.t()[::2], base.t().flip(0)[1:], torch.randn(1, 64).expand(6, 64)):
        for each in compiled:
            assert torch.equal(each(x), each(x.contiguous()))
    every_other = torch.randn(5, 128)[:, ::2]
    assert torch.equal(compiled[1](every_other), compiled[1](every_other.contiguous()))


def test_any_rank(layers):
    _, _, parts = layers
    x = torch.randn(2, 3, 64)
    assert torch.allclose(parts(x), parts(x.flatten(0, 1)).view(2, 3, 8))
    assert torch.allclose(parts(x[0, 0]), parts(x[0, :1])[0], atol=1e-6)


def test_rows_do_not_depend_on_their_neighbours(layers):
    """Every bucket of rows computes a row alike, up to the order of sums."""
    _, whole, _ = layers
    x = torch.randn(19, 64)
    y = whole(x)
    for rows in (1, 2, 3, 4, 5, 16, 17):
        assert torch.allclose(whole(x[:rows]), y[:rows], rtol=1e-5, atol=1e-5)


def test_outputs_have_the_models_structure(compiled, inputs):
    model, result = compiled("bert", "whole")
    with torch.no_grad():
        given, expected = (m(**inputs["bert"][0]) for m in (result, model))
    assert pytree.tree_structure(given) == pytree.tree_structure(expected)
