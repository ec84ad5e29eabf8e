"""What the importer writes: types, names, locations, weights, mutations."""

from __future__ import annotations

import importlib
import time
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from xdsl.dialects.builtin import DYNAMIC_INDEX, IndexType, IntegerAttr, StringAttr, i64
from xdsl.dialects.func import FuncOp

from gqc.dialects.fx import CallOp
from gqc.dialects.gq import WeightOp, tensor_shape
from gqc.dialects.text import parse_ir, print_ir
from gqc.errors import GqcError
from gqc.frontend.capture import capture
from gqc.frontend.import_fx import import_fx
from gqc.frontend.locations import module_path, source_line
from gqc.passes.helpers import layer_name


def calls(module, callee):
    return [op for op in module.walk() if isinstance(op, CallOp) and op.callee.data == callee]


def function(module):
    (found,) = (op for op in module.walk() if isinstance(op, FuncOp))
    return found


def weights(module):
    return [op.key for op in module.walk() if isinstance(op, WeightOp)]


def attributes(of) -> list[Any]:
    """Attributes of each argument or result of a function."""
    return [each.data for each in of]


def dims(module):
    """Names of the dynamic dimensions of each argument."""
    attrs = attributes(function(module).arg_attrs)
    return [[name.data for name in each.get("fx.dims", ())] for each in attrs]


def test_ir_reads_as_the_model(imported):
    module = imported("mlp").module
    module.verify()
    lines = [line.strip() for line in str(module).splitlines()]
    assert lines[1:5] == [
        'func.func @forward(%x: tensor<?x16xf32> {fx.dims = ["batch"]}) -> tensor<?x16xf32> {',
        "%p_up_weight = gq.weight @up.weight : tensor<32x16xf32>",
        "%p_up_bias = gq.weight @up.bias : tensor<32xf32>",
        '%linear = fx.call "aten.linear.default"(%x, %p_up_weight, %p_up_bias) : '
        "(tensor<?x16xf32>, tensor<32x16xf32>, tensor<32xf32>) -> tensor<?x32xf32>",
    ]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama", [["batch", "seq"]]),
        ("vit", [["batch"]]),
        ("branches", [["batch"], ["batch_1"], ["batch"]]),
    ],
)
def test_dynamic_dimensions_are_named(name, expected, imported):
    assert dims(imported(name).module) == expected


def test_batch_and_sequence_of_linears_are_dynamic_and_n_and_k_static(imported):
    for name, callee, operand in (
        ("llama", "linear", 0),
        ("bert", "linear", 0),
        ("gpt2", "addmm", 1),
    ):
        found = calls(imported(name).module, f"aten.{callee}.default")
        assert len(found) > 6
        for op in found:
            *rows, k = tensor_shape(op.operands[operand])
            assert set(rows) == {DYNAMIC_INDEX} and k > 0
            assert tensor_shape(op.results[0])[-1] > 0


def test_symbolic_sizes_are_index_values(imported):
    sizes = calls(imported("llama").module, "aten.sym_size.int")
    assert len(sizes) == 2
    assert all(op.results[0].type == IndexType() for op in sizes)


def test_every_call_has_the_path_of_its_module(imported):
    module = imported("llama").module
    paths = [module_path(op) for op in calls(module, "aten.linear.default")]
    layer = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    layer += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert paths == [f"model.layers.{i}.{p}" for i in range(2) for p in layer] + ["lm_head"]
    for attention in calls(module, "aten.scaled_dot_product_attention.default"):
        assert module_path(attention) in ("model.layers.0.self_attn", "model.layers.1.self_attn")
    for weight in (op for op in module.walk() if isinstance(op, WeightOp)):
        assert weight.key.startswith(f"{module_path(weight)}.")
    unplaced = [op for op in module.walk() if isinstance(op, CallOp) and module_path(op) is None]
    assert {op.callee.data for op in unplaced} == {"aten.sym_size.int"}, "all else has a place"


def test_a_module_called_twice_has_one_path():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return self.inner(self.inner(x))

    module = import_fx(capture(Twice(), torch.randn(2, 4))).module
    assert [module_path(op) for op in calls(module, "aten.linear.default")] == ["inner", "inner"]
    assert weights(module) == ["inner.weight", "inner.bias"]


def test_source_line_is_the_innermost_outside_torch():
    trace = (
        'File "/a/site-packages/models/net.py", line 7, in forward\n  y = self.linear(x)\n'
        'File "/a/site-packages/torch/nn/modules/linear.py", line 134, in forward\n'
    )
    assert str(source_line(trace)) == 'loc("net.py":7:0)'
    assert source_line("") is None


@pytest.mark.parametrize(
    ("name", "canonical", "alias"),
    [
        ("gpt2", "transformer.wte.weight", "lm_head.weight"),
        ("branches", "left.weight", "right.weight"),
    ],
)
def test_tied_weights_are_one(name, canonical, alias, imported):
    ir = imported(name)
    names = weights(ir.module)
    assert len(names) == len(set(names))
    assert canonical in names and alias not in names and alias not in ir.weights
    assert ir.aliases == {alias: canonical}


def test_buffers_are_marked(imported):
    ops = [op for op in imported("branches").module.walk() if isinstance(op, WeightOp)]
    ops += [op for op in imported("recorder").module.walk() if isinstance(op, WeightOp)]
    marked = [op.key for op in ops if "buffer" in op.attributes]
    assert sorted(marked) == ["calls", "last", "scale"]


def test_weights_share_storage_and_no_objects(build, imported):
    parameters = dict(build("mlp").named_parameters())
    for name, weight in imported("mlp").weights.items():
        assert isinstance(weight, nn.Parameter) and weight is not parameters[name]
        assert weight.data_ptr() == parameters[name].data_ptr() and weight.requires_grad


NOT_ASCII = """
from torch import nn


class Straße(nn.Module):
    def __init__(self):
        super().__init__()
        self.größe = nn.Linear(4, 4)

    def forward(self, maß):
        return self.größe(maß) * 2
"""


def test_text_of_names_that_are_not_ascii(tmp_path, monkeypatch):
    (tmp_path / "jürgen.py").write_text(NOT_ASCII, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    model = nn.Sequential(importlib.import_module("jürgen").Straße())
    module = import_fx(capture(model, torch.randn(2, 4))).module
    parsed = parse_ir(print_ir(module))
    assert print_ir(parsed) == print_ir(module)
    assert 'loc("0"("jürgen.py":11:0))' in print_ir(module)
    for each in (module, parsed):
        (linear,) = calls(each, "aten.linear.default")
        assert layer_name(linear) == "0.größe"
        assert weights(each) == ["0.größe.weight", "0.größe.bias"]


def test_mutated_buffers_are_results(imported):
    ir = imported("recorder")
    attrs = attributes(function(ir.module).res_attrs)
    assert attrs == [{}, {"fx.mutates": StringAttr("calls")}, {"fx.mutates": StringAttr("last")}]
    assert ir.transient == {"last"}


def test_mutated_arguments_and_buffers_that_are_only_written_are_results():
    class Writer(nn.Module):
        seen: torch.Tensor

        def __init__(self):
            super().__init__()
            self.register_buffer("seen", torch.zeros(2))

        def forward(self, x, *more):
            self.seen.fill_(1.0)
            more[1].mul_(2)
            return x + more[0]

    x = torch.randn(3, 2)
    ir = import_fx(capture(Writer(), (x, x, x)))
    attrs = attributes(function(ir.module).res_attrs)
    assert {"fx.mutates": StringAttr("seen")} in attrs
    assert {"fx.mutates_argument": IntegerAttr(2, i64)} in attrs
    assert "seen" in ir.weights


def test_lists_become_results(imported):
    module = imported("branches").module
    assert [len(op.results) for op in calls(module, "aten.split_with_sizes.default")] == [3]
    assert not calls(module, "_operator.getitem")


class Branch(nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def test_higher_order_ops_are_refused_with_their_place():
    model = nn.Sequential(nn.Linear(4, 4), Branch())
    with pytest.raises(GqcError, match=r"cond \(cond\) in 1: .*keep control flow"):
        import_fx(capture(model, torch.randn(2, 4)))


def test_values_without_a_type_are_refused_with_their_place():
    class Half(nn.Module):
        def forward(self, x):
            return x.to(torch.complex32).real

    with pytest.raises(GqcError, match=r"_to_copy.* in 0: .*tensor of torch.complex32"):
        import_fx(capture(nn.Sequential(Half()), torch.randn(2, 4)))


def test_import_is_linear_in_layers():
    """Meta weights serve: the importer reads shapes and names alone."""

    def seconds(layers):
        config = transformers.LlamaConfig(
            vocab_size=128256,
            hidden_size=4096,
            intermediate_size=14336,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=8,
        )
        with torch.device("meta"):
            model = transformers.LlamaForCausalLM(config)
            program = capture(model, {"input_ids": torch.ones(2, 8, dtype=torch.int64)})
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            ir = import_fx(program)
            runs.append(time.perf_counter() - start)
        assert len(calls(ir.module, "aten.linear.default")) == 7 * layers + 1
        return min(runs)

    one, three = seconds(1), seconds(3)
    assert three < 3 * 2 * one
    assert three < 0.5
