"""What is left to do to channels runs with the compiled model, whole or traced again."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from xdsl.dialects.builtin import TensorType, f32, i64
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import gq
from gqc.driver.materialize import materialize
from gqc.driver.report_rows import channels_kept
from gqc.formats.rotation import hadamard, rotate
from gqc.frontend.capture import capture
from gqc.frontend.export_fx import export_fx
from gqc.frontend.import_fx import import_fx
from gqc.passes.helpers import layer_name, matmuls
from gqc.passes.pipeline import Stage, pipeline, run_stages
from gqc.passes.quantize_weights import QuantizeWeights
from gqc.quantizers import microscaling
from gqc.schemes import Scheme, parse_scheme
from gqc.targets import resolve

K = 64


@dataclass(frozen=True)
class Change(ModulePass):
    """Put an operation on the input of every layer, as a checkpoint's weights may ask for."""

    name = "change"

    kinds: tuple[str, ...]

    def apply(self, ctx: Any, op: Any) -> None:
        for matmul in list(matmuls(op)):
            axis = len(gq.tensor_shape(matmul.x)) - 1
            factor = gq.WeightOp(f"{layer_name(matmul)}.factor", TensorType(f32, [K]))
            order = gq.WeightOp(f"{layer_name(matmul)}.order", TensorType(i64, [K]))
            makers = {
                "scale": lambda x, f=factor, d=axis: gq.ScaleChannelsOp(x, f.result, d),
                "divide": lambda x, f=factor, d=axis: gq.ScaleChannelsOp(x, f.result, d, True),
                "gather": lambda x, o=order, d=axis: gq.GatherChannelsOp(x, o.result, d),
                "rotate": lambda x: gq.RotateChannelsOp(x, 32),
            }
            Rewriter.insert_op([factor, order], InsertPoint.before(matmul))
            for kind in self.kinds:
                change = makers[kind](matmul.x)
                Rewriter.insert_op(change, InsertPoint.before(matmul))
                matmul.operands[0] = change.result


class Model(nn.Module):
    """Layers with something between that neither a factor nor a permutation passes."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.last = nn.Linear(K, K), nn.Linear(K, K)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.first(x).cumsum(-1).tanh())


class Changed(nn.Module):
    """A layer behind what is done to its input, in float64; both operands may be quantized."""

    def __init__(self, layer: nn.Linear, scheme: str, kinds: tuple[str, ...], store: dict):
        super().__init__()
        self.layer, self.kinds, self.store = copy.deepcopy(layer).double(), kinds, store
        self.scheme = parse_scheme(scheme)
        if self.scheme.activation is not None:
            self.layer.weight.data = fake(layer.weight.detach(), self.scheme)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for kind in self.kinds:
            match kind:
                case "scale":
                    x = x * self.store["factor"].double()
                case "divide":
                    x = x / self.store["factor"].double()
                case "gather":
                    x = x[..., self.store["order"]]
                case "rotate":
                    x = x @ torch.block_diag(hadamard(32), hadamard(32))
        if self.scheme.activation is not None:
            x = fake(x.float(), self.scheme.activation)
        return self.layer(x)


def fake(x: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """x quantized and dequantized, in float64."""
    quantized = microscaling(x.flatten(0, -2), scheme.type(), scheme.scale_rule)
    return quantized.dequantize(torch.float64).view_as(x)


def compiled(model: Model, x: torch.Tensor, scheme: str, kinds: tuple[str, ...]) -> Any:
    """The compiled model, the same in float64 by torch, and what the report says of channels."""
    imported = import_fx(capture(model, x))
    reference = copy.deepcopy(model).double()
    for name in ("first", "last"):
        store = {"factor": torch.rand(K) + 0.5, "order": torch.randperm(K)}
        imported.weights.update({f"{name}.{key}": value for key, value in store.items()})
        setattr(reference, name, Changed(getattr(model, name), scheme, kinds, store))
    target = resolve("cpu").name
    stages = list(pipeline((f"*={scheme}",), target))
    passes = stages[1].passes
    after = 1 + next(i for i, p in enumerate(passes) if isinstance(p, QuantizeWeights))
    stages[1] = Stage("grouped", (*passes[:after], Change(kinds), *passes[after:]))
    run_stages(imported.module, stages[:2])
    channels = channels_kept(imported.module)
    run_stages(imported.module, stages[2:])
    materialize(imported.module, imported.weights)
    return export_fx(imported), reference, channels


@pytest.mark.parametrize(
    "kinds", [("scale",), ("divide", "gather"), ("rotate",), ("scale", "gather", "rotate")], ids=str
)
def test_a_compiled_model_does_what_was_left(kinds):
    """On an int8 grid, weights lose nothing: what differs is float32's rounding."""
    model, x = Model(), torch.randn(2, 3, K)
    for layer in (model.first, model.last):
        layer.weight.data = torch.randint(-127, 128, (K, K)) * 2.0**-10
        layer.weight.data[:, ::32] = -127 * 2.0**-10
        layer.weight.data[:, 1::32] = 127 * 2.0**-10
    module, reference, channels = compiled(model, x, "int8_g32_sym", kinds)
    y = module(x)
    torch.testing.assert_close(y.double(), reference(x.double()), rtol=2e-6, atol=2e-6)
    assert [len(said.split("; ")) for said in channels.values()] == [len(kinds)] * 2
    assert "nothing before it is known" in channels["first"] or kinds == ("rotate",)
    assert all("as the model runs" in said for said in channels.values())

    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), y, rtol=0, atol=0)
    again = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(again(x), y, rtol=0, atol=0)


def test_what_is_left_runs_before_activations_are_quantized():
    """A factor goes into the quantizer's kernel; a rotation runs before it."""
    model, x = Model(), torch.randn(2, 3, K)
    for kinds in (("scale",), ("scale", "rotate")):
        module, reference, _ = compiled(model, x, "mxfp8", kinds)
        expected = reference(x.double())
        assert (module(x) - expected).norm() <= 1e-6 * expected.norm()
        targets = [str(node.target) for node in module.graph.nodes]
        assert targets.count("aten.mul.Tensor") == targets.count("gqc.rotate.default")
        assert targets.count("gqc.rotate.default") == 2 * kinds.count("rotate")


def test_the_operator_that_rotates():
    x = torch.randn(2, 3, K)
    torch.library.opcheck(torch.ops.gqc.rotate.default, (x, 32))
    assert torch.equal(torch.ops.gqc.rotate(x, 32), rotate(x, 32))
