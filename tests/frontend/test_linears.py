"""Linear layers one by one, in place in a model that stays what it is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from xdsl.context import Context
from xdsl.dialects.func import FuncOp

from gqc.dialects.gq import WeightOp
from gqc.dialects.text import parse_ir, print_ir
from gqc.errors import GqcError
from gqc.frontend.export_fx import export_fx
from gqc.frontend.linears import capture_linears, copy_shared, linear_modules, replace_modules
from gqc.frontend.locations import module_path
from gqc.passes.contracts import verify_stage
from gqc.passes.recognize_linears import RecognizeLinears


def functions(imported):
    return {f.sym_name.data: f for f in imported.module.ops if isinstance(f, FuncOp)}


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit"])
def test_replaced_layers_give_the_same_model(name, build, cases):
    model = copy.deepcopy(build(name))
    imported = capture_linears(model)
    verify_stage(imported.module, "imported")
    RecognizeLinears().apply(Context(), imported.module)
    paths = functions(imported)
    assert paths.keys() == linear_modules(model).keys()
    replaced = copy.deepcopy(model)
    replace_modules(replaced, {path: export_fx(imported, path) for path in paths})
    assert not linear_modules(replaced)
    assert replaced.state_dict().keys() == model.state_dict().keys()
    for args, kwargs in cases[name].others:
        with torch.no_grad():
            assert torch.equal(replaced(*args, **kwargs)[0], model(*args, **kwargs)[0])


def test_generate_still_works(build):
    model = copy.deepcopy(build("llama"))
    imported = capture_linears(model)
    replaced = copy.deepcopy(model)
    replace_modules(replaced, {path: export_fx(imported, path) for path in functions(imported)})
    ids = torch.arange(5)[None]
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(replaced.generate(ids, **options), model.generate(ids, **options))
    assert type(replaced) is type(model)


def test_weights_have_the_names_of_the_model_and_tied_ones_one(build):
    imported = capture_linears(build("gpt2"))
    head = functions(imported)["lm_head"]
    (weight,) = (op for op in head.walk() if isinstance(op, WeightOp))
    assert weight.key == "transformer.wte.weight" and module_path(weight) == "lm_head"
    assert imported.aliases == {"lm_head.weight": "transformer.wte.weight"}
    assert imported.weights["transformer.wte.weight"] is build("gpt2").transformer.wte.weight
    assert list(export_fx(imported, "lm_head").state_dict()) == ["weight"]


def test_text_is_lossless(build):
    text = print_ir(capture_linears(build("gpt2")).module)
    assert print_ir(parse_ir(text)) == text


def test_a_layer_used_twice_is_replaced_twice():
    shared = nn.Linear(4, 4)
    inner = nn.ModuleDict({"again": shared})
    model = nn.Sequential(shared, nn.ReLU(), inner)
    imported = capture_linears(model)
    assert list(functions(imported)) == ["0"]
    new = export_fx(imported, "0")
    replace_modules(model, {"0": new})
    assert model[0] is new and inner["again"] is new


def test_a_linear_layer_alone():
    layer = nn.Linear(4, 3, bias=False)
    imported = capture_linears(nn.Sequential(layer))
    x = torch.randn(2, 5, 4)
    assert torch.equal(export_fx(imported, "0")(x), layer(x))


def test_subclasses_are_named():
    class Mine(nn.Linear):
        def forward(self, x):
            return super().forward(x) * 2

    with pytest.warns(UserWarning, match=r"being no plain nn.Linear: 1 \(Mine\)"):
        imported = capture_linears(nn.Sequential(nn.Linear(4, 4), Mine(4, 4)))
    assert list(functions(imported)) == ["0"]


def overridden(layer):
    layer.forward = lambda x: nn.functional.linear(x, layer.weight) * 2


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda layer: layer.register_forward_hook(lambda m, x, y: 2 * y), "it has forward hooks"),
        (
            lambda layer: layer.register_forward_pre_hook(lambda m, x: (2 * x[0],)),
            "it has forward hooks",
        ),
        (overridden, "it has forward hooks"),
        (lambda layer: layer.register_parameter("gain", nn.Parameter(torch.ones(4))), "it has .*"),
    ],
    ids=["hook", "pre-hook", "forward", "parameter"],
)
def test_layers_that_do_more_are_left(change, reason):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    change(model[1])
    with pytest.warns(UserWarning, match=rf"being no plain nn.Linear: 1 \({reason}\)"):
        imported = capture_linears(copy_shared(model))
    assert list(functions(imported)) == ["0"]


def test_weights_that_other_modules_read_are_marked():
    model = nn.ModuleDict({"embed": nn.Embedding(8, 4), "twin": nn.Linear(4, 8)})
    model["again"] = model["twin"]  # a layer used twice is no other module
    model["output"] = nn.Linear(4, 8)
    model["output"].weight = model["embed"].weight
    ops = [op for op in capture_linears(model).module.walk() if isinstance(op, WeightOp)]
    assert [op.key for op in ops if "shared" in op.attributes] == ["embed.weight"]
    assert [op.key for op in ops] == ["twin.weight", "twin.bias", "embed.weight", "output.bias"]


def test_a_copy_shares_storage_and_ties_but_no_objects():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    new = copy_shared(model)
    state, twins = model.state_dict(keep_vars=True), new.state_dict(keep_vars=True)
    for name, tensor in state.items():
        twin = twins[name]
        assert twin is not tensor and twin.data_ptr() == tensor.data_ptr()
        assert type(twin) is type(tensor) and twin.requires_grad == tensor.requires_grad
    assert new.get_parameter("0.weight") is new.get_parameter("2.weight")
    assert model.training and not any(m.training for m in new.modules())


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(GqcError, match=r"ReLU has no plain nn.Linear and no Conv1D"):
        capture_linears(nn.ReLU())
