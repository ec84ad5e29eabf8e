"""Epilogues in kernels, on every tier that runs here, against float64 of the quantized weights."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import small_models
import torch
from tiers import RUN
from torch import nn
from torch.nn import functional as F

import gqc
from gqc.codegen.cpu.isa import host
from gqc.errors import GqcError
from gqc.passes import split_m_buckets
from gqc.quantizers import QUANTIZERS
from gqc.schemes import parse_scheme

TIERS = [name for name in RUN if not name.endswith("vnni")]


@dataclass
class Kind:
    """Torch's functions of what two layers make of x, of a residual r and a vector v."""

    function: Callable[..., torch.Tensor]
    two: bool = False


def new_gelu(x: torch.Tensor) -> torch.Tensor:
    """As it is spelled in transformers."""
    return 0.5 * x * (1 + torch.tanh(0.7978845608 * (x + 0.044715 * torch.pow(x, 3))))


KINDS = {
    "relu": Kind(lambda a, r, v: torch.relu(a)),
    "gelu": Kind(lambda a, r, v: F.gelu(a)),
    "gelu_tanh": Kind(lambda a, r, v: F.gelu(a, approximate="tanh")),
    "new_gelu": Kind(lambda a, r, v: new_gelu(a)),
    "residual": Kind(lambda a, r, v: r + a),
    "silu_scaled_residual": Kind(lambda a, r, v: F.silu(a) * v + r),
    "sigmoid_gate": Kind(lambda a, r, v: r * torch.sigmoid(a) - 0.5),
    "silu_mul": Kind(lambda a, b, r, v: F.silu(a) * b, two=True),
    "gelu_mul_residual": Kind(lambda a, b, r, v: r + b * F.gelu(a), two=True),
}


class Model(nn.Module):
    """One or two layers and a function."""

    def __init__(self, kind: str, n: int, k: int, bias: bool):
        super().__init__()
        self.kind = KINDS[kind]
        layers = [nn.Linear(k, n, bias) for _ in range(1 + self.kind.two)]
        self.fcs: Any = nn.ModuleList(layers)
        self.v = nn.Parameter(torch.randn(n))

    def forward(self, x: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return self.kind.function(*(fc(x) for fc in self.fcs), r, self.v)

    def exact(self, x: torch.Tensor, r: torch.Tensor, scheme: str) -> torch.Tensor:
        """The result in float64, of weights as they are quantized."""
        made = []
        for fc in self.fcs:
            s = parse_scheme(scheme)
            quantized = QUANTIZERS[s.quantizer](fc.weight.detach(), s.type(), s.scale_rule)
            bias = None if fc.bias is None else fc.bias.double()
            made.append(F.linear(x.double(), quantized.dequantize(torch.float64), bias))
        return self.kind.function(*made, r.double(), self.v.double()).detach()


def check(
    kind: str,
    isa: str,
    dtype: torch.dtype,
    n: int = 96,
    scheme: str = "int4_g32",
    rows: tuple[int, ...] = (9,),
) -> Any:
    """The only call is of one operator, and it errs by float32's sums and one rounding."""
    torch.manual_seed(n)
    model = Model(kind, n, 64, bias=dtype == torch.bfloat16).to(dtype).eval()
    example = torch.randn(2, 3, 64, dtype=dtype), torch.randn(2, 3, n, dtype=dtype)
    compiled = gqc.compile(model, example, scheme=scheme, target=f"cpu_{isa}")
    called = [str(node.target) for node in compiled.graph.nodes if node.op == "call_function"]
    assert [name for name in called if "check" not in name] == ["gqc.matmul.default"]
    for count in rows:
        x, r = (torch.randn(count, 1, t.shape[-1], dtype=dtype) for t in example)
        found, exact = compiled(x, r), model.exact(x, r, scheme)
        assert found.dtype == dtype
        unit = torch.finfo(dtype).eps / 2
        excess = (found.double() - exact).abs() - 1.001 * unit * exact.abs()
        assert excess.max() <= 4e-6, f"{count} rows: {excess.max():.3g}"
    return compiled


@pytest.mark.parametrize("kind", KINDS)
def test_every_function(kind):
    check(kind, host().name, torch.float32)


@pytest.mark.parametrize("isa", TIERS)
def test_every_tier(isa, emulated_arm):
    check("gelu_mul_residual", isa, torch.bfloat16, rows=(1, 2, 9))
    check("silu_scaled_residual", isa, torch.float16)


@pytest.mark.parametrize(("n", "isa"), [(32, TIERS[0]), (1056, TIERS[0]), (40, TIERS[-1])])
def test_gate_and_up_of_any_number_of_panels(n, isa):
    check("silu_mul", isa, torch.float32, n)


def test_integer_zero_points_lie_in_panels_too():
    scheme = "ui4 g32 zero=ui4 zero_mode=quantized scale_rule=minmax"
    check("silu_mul", host().name, torch.float32, 64, scheme)


@pytest.mark.parametrize("kind", ["silu_mul", "gelu_mul_residual", "silu_scaled_residual"])
def test_epilogues_of_sums_of_parts(kind, monkeypatch):
    """Each half of K by another program: the epilogue comes after their sum."""
    monkeypatch.setattr(split_m_buckets, "PART_CODES", 1)
    compiled = check(kind, host().name, torch.bfloat16, rows=(1, 2, 9))
    parts = [kernel.op.parts for kernel in compiled.kernels]
    assert max(parts) == 2 and parts[-1] == 1, "but for many rows"


# Whole models


def launches(model: Any) -> list[str]:
    """Kernels that a compiled model calls, in order, without what their names say of shapes."""
    keys = [node.args[-1] for node in model.graph.nodes if "gqc.matmul" in str(node.target)]
    return [str(key).partition(".")[0] for key in keys]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_llama(dtype):
    """q, k, v in one launch; residuals in those of o and down; gate, up, SiLU·mul in one."""
    torch.manual_seed(0)
    model = small_models.llama(num_hidden_layers=1).to(dtype)
    ids = torch.randint(0, 96, (2, 5))
    whole = gqc.compile(model, (ids,), scheme="int4_g32", target="cpu")
    shape = "matmul_{}_ui4_g32_f16_rescale_f16_{}"
    kind = "f32" if dtype == torch.float32 else "bf16"
    block = ["128x64", "64x64_add", "256x64_silu_mul", "64x128_add"]
    assert launches(whole) == [shape.format(kind, end) for end in block]
    apart = gqc.compile(model, scheme="int4_g32", target="cpu")
    with torch.no_grad():
        ours, theirs = whole(ids), apart(ids).logits
    ours = getattr(ours, "logits", ours)
    error = (ours - theirs).norm() / theirs.norm()
    assert error <= (1e-5 if dtype == torch.float32 else 2e-2)
    rows = {row.layer: row for row in whole.report().rows}
    for row in apart.report().rows:
        if row.decision == "emulated":
            mine = rows[row.layer]
            assert (mine.weight, mine.shape, mine.sqnr) == (row.weight, row.shape, row.sqnr)
            assert mine.kernels
    assert rows["model.layers.0.mlp.up_proj"].kernels[0].endswith("256x64_silu_mul_m1")


def test_gpt2():
    """Activations and residuals behind a view of rows, and a clone that dropout leaves."""
    torch.manual_seed(0)
    model, ids = small_models.gpt2(n_layer=1), torch.randint(0, 96, (2, 5))
    whole = gqc.compile(model, (ids,), scheme="int8_g32", target="cpu")
    with torch.no_grad():
        ours, theirs = whole(ids), gqc.compile(model, scheme="int8_g32", target="cpu")(ids).logits
    new_gelu = "mul_pow_mul_add_mul_tanh_add_mul"
    ends = ["192x64_bias", "64x64_bias_add", f"256x64_bias_{new_gelu}", "64x256_bias_add"]
    assert [name.partition("rescale_f16_")[2] for name in launches(whole)] == ends
    torch.testing.assert_close(getattr(ours, "logits", ours), theirs, rtol=1e-4, atol=1e-5)


def test_stored_weights():
    """Weights that are quantized already are merged as they are."""
    torch.manual_seed(0)
    model, ids = small_models.llama(num_hidden_layers=1), torch.randint(0, 96, (1, 5))
    quantized = gqc.quantize(model, scheme="int4_g32")
    stored = gqc.compile(model, (ids,), weights=quantized, target="cpu")
    at_once = gqc.compile(model, (ids,), scheme="int4_g32", target="cpu")
    assert launches(stored) == launches(at_once)
    with torch.no_grad():
        ours, theirs = stored(ids), at_once(ids)
    assert torch.equal(getattr(ours, "logits", ours), getattr(theirs, "logits", theirs))
    sqnr = [{row.layer: row.sqnr for row in each.report().rows} for each in (stored, at_once)]
    assert sqnr[0].keys() == sqnr[1].keys()


def test_the_report_says_why_layers_are_not_merged():
    """Each weight of NVFP4 has a scale of its own."""
    torch.manual_seed(0)
    model, ids = small_models.llama(num_hidden_layers=1), torch.randint(0, 96, (1, 5))
    compiled = gqc.compile(model, (ids,), scheme="w4a16_nvfp4", target="cpu")
    rows = {row.layer: row for row in compiled.report().rows}
    said = "every weight has a tensor scale of its own: model.layers.0.mlp.gate_proj, "
    assert said in rows["model.layers.0.mlp.up_proj"].launch
    assert rows["model.layers.0.mlp.down_proj"].launch == ""
    assert "a launch each, for every weight has a tensor scale" in str(compiled.report())


def test_copies_run():
    """Through torch.export and copy, with the residual as an input of the operator."""
    torch.manual_seed(0)
    model = Model("silu_scaled_residual", 64, 64, True).eval()
    x, r = torch.randn(3, 64), torch.randn(3, 64)
    compiled = gqc.compile(model, (x, r), scheme="int4_g32", target="cpu")
    exported = torch.export.export(compiled, (x, r)).module()
    for again in (exported, copy.deepcopy(compiled), pickle.loads(pickle.dumps(compiled))):
        assert torch.equal(again(x, r), compiled(x, r))
    with pytest.raises(GqcError, match="r has size 2 in dimension 0"):
        compiled(x, r[:2])
