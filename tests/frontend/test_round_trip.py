"""Model → IR → graph module is exact, and so are the IR's text and its interpreter."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _pytree as pytree

from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir, print_ir
from gqc.frontend.capture import inference
from gqc.frontend.export_fx import export_fx
from gqc.frontend.signature import Leaf

ALL = ("mlp", "bert", "llama", "gpt2", "vit", "convnet", "recorder", "branches")


def call(model: nn.Module, inputs: tuple[tuple, dict[str, Any]]) -> Any:
    """The model's output on copies of the inputs."""
    args, kwargs = copy.deepcopy(inputs)
    with inference(model):
        return model(*args, **kwargs)


def assert_equal(found: Any, expected: Any) -> None:
    """The same pytree with the same bits."""
    found_leaves, found_spec = pytree.tree_flatten(found)
    leaves, spec = pytree.tree_flatten(expected)
    assert found_spec == spec
    for x, y in zip(found_leaves, leaves, strict=True):
        assert torch.equal(x, y) if isinstance(y, torch.Tensor) else x == y


@pytest.mark.parametrize("name", ALL)
def test_graph_module_is_exact_at_other_sizes(name, cases, build, imported):
    """Calls follow one another, so that what the model writes counts."""
    model = copy.deepcopy(build(name))
    exported = copy.deepcopy(export_fx(imported(name)))
    for inputs in cases[name].others:
        assert_equal(call(exported, inputs), call(model, inputs))
    expected = dict(model.named_buffers())
    for buffer, value in exported.named_buffers():
        assert buffer not in expected or torch.equal(value, expected[buffer])


@pytest.mark.parametrize("name", ALL)
def test_text_is_lossless(name, cases, imported):
    original = imported(name)
    text = print_ir(original.module)
    parsed = parse_ir(text)
    assert print_ir(parsed) == text
    weights = copy.deepcopy(original.weights)
    exported = export_fx(replace(original, module=parsed, weights=weights))
    again = copy.deepcopy(export_fx(original))
    for inputs in cases[name].others:
        assert_equal(call(exported, inputs), call(again, inputs))


@pytest.mark.parametrize("name", ALL)
def test_interpreter_gives_the_outputs_of_the_model(name, cases, build, imported):
    ir = imported(name)
    inputs = cases[name].others[-1]
    expected = call(copy.deepcopy(build(name)), inputs)
    leaves = pytree.tree_leaves(inputs)
    assert all(leaf is Leaf.VALUE for leaf in ir.signature.inputs)
    with torch.no_grad():
        results = iter(run(ir.module, copy.deepcopy(ir.weights), leaves))
    outputs = [next(results) if leaf is Leaf.VALUE else leaf for leaf in ir.signature.outputs]
    assert_equal(pytree.tree_unflatten(outputs, ir.signature.out_spec), expected)


@pytest.mark.parametrize("name", ALL)
def test_state_dict_is_that_of_the_model(name, build, imported):
    expected = build(name).state_dict(keep_vars=True)
    found = export_fx(imported(name)).state_dict(keep_vars=True)
    unread = {"norm.num_batches_tracked"}
    assert found.keys() | unread == expected.keys() | unread
    for fqn, tensor in found.items():
        assert isinstance(tensor, nn.Parameter) == isinstance(expected[fqn], nn.Parameter)
        shared = tensor.data_ptr() == expected[fqn].data_ptr()
        assert shared != (fqn == "calls"), "all is shared but for buffers that are written"
