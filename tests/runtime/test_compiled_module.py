"""What a compiled model survives as an nn.Module: tracing, export, copies, pickles, state dicts."""

from __future__ import annotations

import copy
import gc
import pickle
import subprocess
import sys
import weakref

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.export import Dim

import gqc


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_torch_compile(compiled, x, backend):
    """No graph break, and one graph for all batch sizes."""
    counter = CompileCounterWithBackend(backend)
    traced = torch.compile(compiled, fullgraph=True, dynamic=True, backend=counter)
    for rows in (5, 3, 2, 4):
        inputs = x[:rows].clone()  # Dynamo guards on the base of a view
        assert torch.allclose(traced(inputs), compiled(inputs), atol=1e-5)
    assert counter.frame_count == 1
    (graph,) = counter.graphs
    matmuls = [n for n in graph.graph.nodes if n.target is torch.ops.gqc.matmul.default]
    assert len(matmuls) == 4


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export(compiled, x, strict, tmp_path):
    """The exported program runs, other batch sizes too, and so does the one saved and loaded."""
    shapes = ({0: Dim("batch", min=1)},)
    program = torch.export.export(compiled, (x,), dynamic_shapes=shapes, strict=strict)
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    for each in (program, loaded):
        for rows in (5, 2):
            assert torch.equal(each.module()(x[:rows]), compiled(x[:rows]))
        targets = [node.target for node in each.graph.nodes]
        assert targets.count(torch.ops.gqc.matmul.default) == 4


def test_deepcopy(compiled, x):
    """The copy has its own weights; the original does not notice what becomes of them."""
    expected = compiled(x)
    new = copy.deepcopy(compiled)
    assert torch.equal(new(x), expected)
    assert [row.layer for row in new.report().rows] == ["up", "down", "head"]
    assert new.ir("legal") == compiled.ir("legal")
    for tensor in new.state_dict().values():
        tensor.zero_()
    assert torch.equal(new(x), torch.zeros_like(expected))
    assert torch.equal(compiled(x), expected)


def test_pickle_in_a_fresh_process(compile_model, x, tmp_path):
    """A process that has compiled nothing runs the model, and knows how it was compiled."""
    # The class of a model compiled in layers is the test's own, which no other process imports.
    model = compile_model("whole")
    path = tmp_path / "model.pickle"
    path.write_bytes(pickle.dumps((model, x, model(x), model.ir("legal"), str(model.report()))))
    code = (
        "import pickle, sys, torch\n"
        "model, x, y, legal, report = pickle.load(open(sys.argv[1], 'rb'))\n"
        "assert torch.equal(model(x), y)\n"
        "assert str(model.report()) == report\n"
        "assert model.ir('legal') == legal\n"
        "assert len(model.kernels) == 10 and 'define' in model.kernels[0].source\n"
    )
    done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_torch_save(compiled, x, tmp_path):
    torch.save(compiled, tmp_path / "model.pt")
    loaded = torch.load(tmp_path / "model.pt", weights_only=False)
    assert torch.equal(loaded(x), compiled(x))


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_state_dict_round_trip(mode, compile_model, x, tmp_path):
    """A state dict on disk turns the same architecture with other weights into the same model."""
    model, other = compile_model(mode), compile_model(mode, seed=1)
    assert not torch.allclose(other(x), model(x), atol=0.1)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    other.load_state_dict(torch.load(tmp_path / "weights.pt", weights_only=True), strict=True)
    assert torch.equal(other(x), model(x))


def test_both_modes_have_the_same_state_dict(compile_model):
    whole, layers = (compile_model(mode).state_dict() for mode in ("whole", "layers"))
    packed = {f"{layer}.weight" for layer in ("up", "down")}  # nothing, for dense models to refuse
    assert whole.keys() == layers.keys() - packed
    assert all(torch.equal(whole[key], layers[key]) for key in whole)


def test_holds_only_packed_weights(compiled):
    """Bytes of parameters and buffers, weight by weight: 4 bits and two halves for each 32."""
    sizes = {name: t.nbytes for name, t in compiled.state_dict(keep_vars=True).items()}
    everything = [*compiled.parameters(), *compiled.buffers()]
    assert sum(t.nbytes for t in everything) == sum(sizes.values())
    attributes = [value for module in compiled.modules() for value in vars(module).values()]
    assert not any(isinstance(value, torch.Tensor) for value in attributes)
    # Rows are padded to whole lanes of 64: the 96 of `up` to 128.
    for layer, (n, k) in {"up": (128, 64), "down": (64, 96)}.items():
        packed = sum(sizes.pop(f"{layer}.weight_{part}") for part in ("packed", "scale", "zero"))
        assert packed == n * k * (4 + (16 + 16) / 32) / 8
    assert not any(sizes.pop(f"{layer}.weight", 0) for layer in ("up", "down"))
    assert sizes == {"up.bias": 384, "head.weight": 2048, "head.bias": 32, "offset": 256}


@pytest.mark.parametrize("mode", ["whole", "layers"])
def test_dense_weights_die_with_the_model(mode, build, x):
    """Nothing of a compiled model or of the compiler keeps the weights that were quantized."""
    model = build()
    quantized = [weakref.ref(t.untyped_storage()) for t in (model.up.weight, model.down.weight)]
    layers = [weakref.ref(t) for t in (model.up.weight, model.down.weight)]
    kept = weakref.ref(model.head.weight.untyped_storage())
    compiled = gqc.compile(
        model, x if mode == "whole" else None, scheme="int4_g32", ignore=["head"]
    )
    compiled(x)
    del model
    gc.collect()
    assert [ref() for ref in layers] == [None, None]
    assert [ref() for ref in quantized] == [None, None]
    assert kept() is not None


def test_ir_dies_with_the_compiled_model(compile_model):
    model = compile_model("whole")
    modules = [weakref.ref(m) for m in (model.compilation.source, model.compilation.result)]
    del model
    gc.collect()
    assert [ref() for ref in modules] == [None, None]


def test_training_mode(compiled, x):
    """train() and eval() change nothing."""
    expected = compiled(x)
    new = copy.deepcopy(compiled)
    assert torch.equal(new.train()(x), expected)
    assert torch.equal(new.eval()(x), expected)
