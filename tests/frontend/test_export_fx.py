"""The graph module: what it survives, how it is called, what it refuses."""

from __future__ import annotations

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import fx, nn

from gqc.dialects.text import parse_ir
from gqc.errors import GqcError
from gqc.frontend.capture import capture
from gqc.frontend.export_fx import export_fx, register
from gqc.frontend.import_fx import import_fx
from gqc.frontend.signature import Imported

NAMES = ("llama", "branches", "recorder")


@pytest.fixture
def exported(imported):
    """A fresh graph module of a model, with weights of its own."""
    return lambda name: copy.deepcopy(export_fx(imported(name)))


def same(x, y):
    if isinstance(x, torch.Tensor):
        return torch.equal(x, y)
    if isinstance(x, dict):
        return all(same(x[key], y[key]) for key in x)
    return all(map(same, x, y)) if isinstance(x, list | tuple) else x == y


@pytest.mark.parametrize("name", NAMES)
def test_compiles_as_one_graph(name, exported, cases):
    model = exported(name)
    compiled = torch.compile(
        copy.deepcopy(model), fullgraph=True, dynamic=True, backend="aot_eager"
    )
    args, kwargs = cases[name].others[-1]
    with torch.no_grad():
        for _ in range(2):
            assert same(compiled(*args, **kwargs), model(*args, **kwargs))


@pytest.mark.parametrize("name", ["branches", "recorder"])
def test_exports_again(name, exported, cases):
    model = exported(name)
    again = export_fx(import_fx(capture(copy.deepcopy(model), cases[name].others[-1])))
    for args, kwargs in cases[name].others:
        with torch.no_grad():
            assert same(again(*args, **kwargs), model(*args, **kwargs))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
@pytest.mark.parametrize("name", NAMES)
def test_copies_and_pickles(name, duplicate, exported, cases):
    model = exported(name)
    model.note = "kept"
    twin = duplicate(duplicate(model))
    assert twin.note == "kept"
    assert twin.state_dict().keys() == model.state_dict().keys()
    for args, kwargs in cases[name].others:
        with torch.no_grad():
            assert same(twin(*args, **kwargs), model(*args, **kwargs))


def test_copies_keep_buffers_below_that_are_not_persistent(build):
    model = export_fx(import_fx(capture(nn.Sequential(build("recorder")), torch.randn(4, 8))))
    for twin in (model, copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert {name for name, _ in twin.named_buffers()} == {"0.calls", "0.last"}
        assert "0.last" not in twin.state_dict()


def test_the_code_is_generated_once(imported, monkeypatch):
    ir, calls = imported("mlp"), []
    recompile = fx.GraphModule.recompile
    monkeypatch.setattr(fx.GraphModule, "recompile", lambda m: calls.append(m) or recompile(m))
    model = export_fx(ir)
    assert len(calls) == 1 and calls[0] is model


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name, exported, cases):
    model, other = exported(name), exported(name)
    for tensor in other.state_dict().values():
        tensor.zero_()
    args, kwargs = cases[name].others[0]
    with torch.no_grad():
        assert not same(other(*args, **kwargs), exported(name)(*args, **kwargs))
        other.load_state_dict(model.state_dict(), strict=True)
    if name != "recorder":  # its cache is not in the state dict
        with torch.no_grad():
            assert same(other(*args, **kwargs), model(*args, **kwargs))


def test_positional_inputs_have_their_names_too(exported):
    ids = torch.arange(6).view(2, 3)
    model = exported("gpt2")
    with torch.no_grad():
        assert same(model(ids), model(input_ids=ids))


def test_mutated_argument_is_written(exported):
    class Doubler(nn.Module):
        def forward(self, x):
            x.mul_(2)
            return x + 1

    model = export_fx(import_fx(capture(Doubler(), torch.randn(3, 2))))
    x = torch.ones(5, 2)
    assert torch.equal(model(x), torch.full((5, 2), 3.0))
    assert torch.equal(x, torch.full((5, 2), 2.0))


def test_the_model_keeps_its_buffers(build):
    model = copy.deepcopy(build("recorder"))
    with torch.no_grad():
        export_fx(import_fx(capture(model, torch.randn(4, 8))))(torch.randn(3, 8))
    assert model.calls == 0


def test_calls_without_results_are_kept():
    class Checked(nn.Module):
        def forward(self, x):
            torch._check(x.shape[0] != 7)
            n = x.sum().to(torch.int64).item()
            torch._check(n > 2)
            return x * 2

    model = export_fx(import_fx(capture(Checked(), torch.ones(3, 2))))
    assert torch.equal(model(torch.ones(4, 2)), torch.full((4, 2), 2.0))
    with pytest.raises(RuntimeError, match="Runtime assertion failed"):
        model(torch.zeros(4, 2))


def test_without_a_signature_arguments_are_those_of_the_function(build, imported):
    ir = imported("mlp")
    model = export_fx(replace(ir, signature=None))
    x = torch.randn(4, 16)
    assert torch.equal(model(x), build("mlp")(x))


@pytest.mark.parametrize(
    ("name", "inputs", "message"),
    [
        ("mlp", (torch.randn(3, 15),), r"x has size 15 in dimension 1 \(16\); the model takes 16"),
        ("mlp", (torch.randn(3, 16).double(),), r"x is torch.float64 of 2 dimensions; .*float32"),
        ("mlp", (torch.randn(16),), r"x is torch.float32 of 1 dimensions; .*\['batch', 16\]"),
        ("mlp", (3,), "x is a int; the model takes a tensor"),
    ],
)
def test_inputs_are_checked(name, inputs, message, exported):
    with pytest.raises(GqcError, match=message):
        exported(name)(*inputs)


def test_named_dimensions_must_agree():
    class Add(nn.Module):
        def forward(self, x, y):
            return x + y

    model = export_fx(import_fx(capture(Add(), (torch.randn(3, 4), torch.randn(3, 4)))))
    model(torch.randn(5, 4), torch.randn(5, 4))
    with pytest.raises(GqcError, match=r"y has size 1 in dimension 0 \(batch\); the model takes 5"):
        model(torch.randn(5, 4), torch.randn(1, 4))


def test_constants_are_checked():
    class Scaled(nn.Module):
        def forward(self, x, negate=False):
            return -x if negate else x * 2

    model = export_fx(import_fx(capture(Scaled(), ((torch.randn(3, 4),), {"negate": True}))))
    x = torch.randn(2, 4)
    assert torch.equal(model(x, True), -x)
    with pytest.raises(GqcError, match="captured with the constant True, not False"):
        model(x, negate=False)


def test_ops_of_middle_stages_are_refused():
    text = """
    func.func @forward(%x: tensor<4x64xf32>) -> tensor<4x64xf32> {
      %w = gq.weight @w : tensor<64x64xf32>
      %q = gq.qcast %w by "rtn" "minmax" : tensor<64x64xf32>
        -> tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>
      %y = gq.matmul_t %x, %q : (tensor<4x64xf32>, tensor<64x64x!gq.block_scaled<1x32 : f16 : si4>>)
        -> tensor<4x64xf32>
      func.return %y : tensor<4x64xf32>
    }"""
    ir = Imported(parse_ir(text), {"w": torch.randn(64, 64)})
    with pytest.raises(GqcError, match=r"gq.qcast does not run in torch: export the imported or"):
        export_fx(ir)
    with pytest.raises(GqcError, match="no function f in the IR: it has forward"):
        export_fx(ir, "f")


def test_names_that_collide_are_refused():
    root = nn.Module()
    register(root, "a.weight", torch.zeros(1), True)
    with pytest.raises(GqcError, match=r"weight a.weight.scale cannot be registered"):
        register(root, "a.weight.scale", torch.zeros(1), True)
