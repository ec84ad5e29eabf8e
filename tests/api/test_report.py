"""The report: what happened to each layer, checked against an independent count."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import fx, nn
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

import gqc
from gqc.dialects import gq
from gqc.driver.report import Report, Row
from gqc.quantizers import QUANTIZERS
from gqc.schemes import parse_scheme


def rows(compiled) -> dict[str, Row]:
    return {row.layer: row for row in compiled.report().rows}


def measured_sqnr(weight: Any, name: str) -> float:
    """Signal over noise in dB of a weight under a scheme, in float64."""
    scheme = parse_scheme(name)
    exact = weight.detach().double()
    quantized = QUANTIZERS[scheme.quantizer](weight, scheme.type(), scheme.scale_rule)
    noise = exact - quantized.dequantize(torch.float64)
    return 10 * ((exact**2).sum() / (noise**2).sum()).log10().item()


BITS = {
    "int4_g32": 4 + (16 + 16) / 32,
    "int4_g16": 4 + (16 + 16) / 16,
    "int8_g64_sym": 8 + 16 / 64,
    "int3_g128": 3 + (16 + 16) / 128,
    "int2_row_sym": 2 + 16 / 256,
    "int1_g256": 1 + (16 + 16) / 256,
    "ui4 g32 zero=ui4 zero_mode=quantized scale_rule=minmax": 4 + (16 + 4) / 32,
    "si8 g32 scale=f32": 8 + 32 / 32,
    "w4a16_mxfp4": 4 + 8 / 32,
    "w6a16_mxfp6": 6 + 8 / 32,
    "w6a16_mxfp6_e3m2": 6 + 8 / 32,
}


@pytest.mark.parametrize("scheme", BITS)
def test_a_quantized_layer(scheme):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 48))
    row = rows(gqc.compile(model, scheme={"*": scheme}, target="cpu"))["0"]
    assert (row.shape, row.decision) == ((48, 256), "emulated")
    assert row.bits == BITS[scheme]
    assert row.bytes == 64 * 256 * BITS[scheme] / 8, "rows are padded to whole lanes"
    assert row.sqnr == pytest.approx(measured_sqnr(model[0].weight, scheme), abs=0.01)
    assert str(parse_scheme(scheme).element) in row.format
    assert f"multiplies no {parse_scheme(scheme).element}: decoded in registers" in row.reason


def test_rows_of_a_model(build):
    """Quantized layers and what stays dense, each with its reason, both modes alike."""
    model = build("llama")
    scheme = {"*.down_proj": "int8_g32", "*.mlp.*": "int4_g32", "*_head": "int4_g32"}
    options: Any = {"scheme": scheme, "ignore": ["*.1.mlp.up_proj"]}
    example = torch.randint(0, 96, (2, 5))
    reports = [rows(gqc.compile(model, x, **options)) for x in (None, example)]
    for found in reports:
        assert found["model.layers.0.mlp.down_proj"].bits == 9
        assert found["model.layers.0.mlp.up_proj"].bits == 5
        ignored = found["model.layers.1.mlp.up_proj"]
        assert (ignored.decision, ignored.bits) == ("kept", 32)
        assert ignored.reason == "ignored by pattern *.1.mlp.up_proj"
        assert found["model.layers.0.self_attn.q_proj"].reason == "no scheme names this layer"
        assert found["lm_head"].reason == "the output head is kept by default"
        for row in found.values():
            assert (row.sqnr is None) == (row.decision == "kept") == (row.kernels == ())
        assert found["model.layers.0.mlp.up_proj"].weight == "model.layers.0.mlp.up_proj.weight"
    layers, whole = reports
    embeddings = [rows.pop("model.embed_tokens.weight") for rows in reports]
    assert [row.decision for row in embeddings] == ["kept", "kept"]
    assert "a parameter of Embedding" in embeddings[0].reason
    assert "aten.embedding" in embeddings[1].reason
    merged = [found.pop("model.layers.0.mlp.gate_proj") for found in reports]
    assert [row.launch for row in merged] == [
        "",
        "one launch: model.layers.0.mlp.gate_proj, model.layers.0.mlp.up_proj",
    ]
    twin = whole["model.layers.0.mlp.up_proj"]
    assert (twin.kernels, twin.launch) == (merged[1].kernels, merged[1].launch)
    assert sum(row.bytes for row in merged) == 2 * merged[0].bytes
    for found in reports:
        found.pop("model.layers.0.mlp.up_proj")
    epilogues = {"down_proj": "add", "gate_proj": "silu_mul"}  # of the whole model's kernels
    for name, row in whole.items():
        if row.kernels:
            word = epilogues[name.rpartition(".")[2]]
            assert all(f"_{word}_" in kernel for kernel in row.kernels)
            plain = tuple(kernel.replace(f"_{word}_", "_") for kernel in row.kernels)
            whole[name] = replace(row, kernels=plain)
    assert layers == whole


def test_weights_of_one_layer():
    """Two weights of one module are told apart."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (nn.Parameter(torch.randn(8, 64) ** power) for power in (1, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.linear(x, self.a) + x @ self.b.T

    torch.manual_seed(0)
    pair = Pair()
    report = gqc.compile(nn.Sequential(pair), torch.randn(2, 64), scheme="int4_g32").report()
    assert [(row.layer, row.weight) for row in report.rows] == [("0.a", "0.a"), ("0.b", "0.b")]
    for row, weight in zip(report.rows, (pair.a, pair.b), strict=True):
        assert row.sqnr == pytest.approx(measured_sqnr(weight, "int4_g32"), abs=0.01)


def test_a_tied_head_says_why_it_is_kept(compiled):
    _, result = compiled("gpt2", "whole")
    assert rows(result)["lm_head"].decision == "kept"


def test_an_exact_weight_has_no_noise():
    model = nn.Sequential(nn.Linear(64, 8))
    model[0].weight = nn.Parameter(torch.randint(0, 16, (8, 64)).float())
    model[0].weight.data[:, ::32], model[0].weight.data[:, 1::32] = 0, 15
    assert rows(gqc.compile(model, scheme="int4_g32"))["0"].sqnr == float("inf")


def test_a_zero_weight_has_no_noise():
    model: Any = nn.Sequential(nn.Linear(64, 8))
    model[0].weight.data.zero_()
    assert rows(gqc.compile(model, scheme="int4_g32", target="cpu"))["0"].sqnr == float("inf")


def test_one_weight_in_one_format_by_two_rules():
    """Each has its own noise, and its own storage."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    schemes = {"0": "si4 g32 scale_rule=no_clip", "1": "si4 g32 scale_rule=restricted"}
    report = gqc.compile(model, scheme=schemes, target="cpu").report()
    first, second = report.rows
    assert first.format == second.format and first.weight == second.weight
    assert first.sqnr == pytest.approx(measured_sqnr(model[0].weight, schemes["0"]), abs=1e-3)
    assert second.sqnr == pytest.approx(measured_sqnr(model[0].weight, schemes["1"]), abs=1e-3)
    assert first.sqnr is not None and second.sqnr is not None
    assert abs(first.sqnr - second.sqnr) > 0.1
    assert report.bytes == first.bytes + second.bytes


@dataclass(frozen=True)
class DropLaunch(ModulePass):
    """Give the users of the first launch the result of the second."""

    name = "drop-launch"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        first, second = (op for op in op.walk() if isinstance(op, gq.LaunchOp))
        first.results[0].replace_all_uses_with(second.results[0])
        Rewriter.erase_op(first)


@pytest.mark.parametrize("named", [True, False])
def test_a_pass_that_removes_a_launch(named):
    """Rows and launches are told apart by name: the other layer keeps its own kernels."""

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.stack([self.a(x), self.b(x)]).diff(dim=0)

    model: Any = Pair()
    x = torch.randn(2, 64)
    if not named:  # no stack of modules, so operations have no location
        model = fx.symbolic_trace(model)
        for node in model.graph.nodes:
            node.meta.clear()
    options: Any = {"scheme": {"a": "int4_g32", "b": "int8_g32"}, "target": "cpu"}
    plain = rows(gqc.compile(model, x, **options))
    assert all("ui4" in kernel and "bias" in kernel for kernel in plain["a"].kernels)
    assert all("ui8" in kernel for kernel in plain["b"].kernels)
    compiled: Any = gqc.compile(model, x, passes={"kernels": [DropLaunch()]}, **options)
    found = rows(compiled)
    assert found["a"].kernels == () and found["b"].kernels == plain["b"].kernels != ()
    assert found["a"].sqnr == plain["a"].sqnr and found["b"].sqnr == plain["b"].sqnr
    assert torch.equal(compiled(x), torch.zeros(1, 2, 64))
    assert "ui8_g32" in str(compiled.report())


@pytest.mark.parametrize("spelling", ["scaled", "einsum"])
def test_linear_algebra_that_is_not_recognized(spelling):
    """The reason says no more than is known."""
    spellings = {
        "scaled": lambda x, w: torch.addmm(torch.ones(64), x, w.t(), alpha=2),
        "einsum": lambda x, w: torch.einsum("mk,nk->mn", x, w),
    }

    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.layer = nn.Parameter(torch.randn(64, 64)), nn.Linear(64, 64)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return spellings[spelling](self.layer(x), self.weight)

    row = rows(gqc.compile(Other(), torch.randn(2, 64), scheme="int4_g32", target="cpu"))["weight"]
    assert row.decision == "kept"
    assert re.fullmatch(r"read by aten\.\w+\.\w+: not recognized as a linear layer", row.reason)


def test_a_weight_on_the_left_is_a_layer() -> None:
    class Left(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(64, 48)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner.weight @ x.transpose(1, 2) + self.inner.bias[:, None]

    model, x = Left().eval(), torch.randn(2, 5, 64)
    whole: Any = gqc.compile(model, x, scheme="int4_g32", target="cpu")
    assert rows(whole)["inner"].decision == "emulated"
    layer: Any = gqc.compile(model.inner, scheme="int4_g32", target="cpu")
    for given in (x, torch.randn(3, 7, 64)):
        torch.testing.assert_close(whole(given), layer(given).mT, rtol=1e-5, atol=1e-5)


def test_a_quantized_head_and_its_embedding(build):
    """A tied weight that is also held packed is reported, and counted, twice."""
    example = ((), {"input_ids": torch.randint(0, 96, (2, 5))})
    compiled = gqc.compile(build("gpt2"), example, scheme="int4_g32", lm_head=True, target="cpu")
    found = rows(compiled)
    head = found["lm_head"]
    (embedding,) = (r for r in found.values() if r.weight == head.weight and r is not head)
    assert (head.decision, embedding.decision) == ("emulated", "kept")
    assert "aten.embedding" in embedding.reason and embedding.bytes == 96 * 64 * 4
    held = sum(
        {t.data_ptr(): t.nbytes for t in compiled.state_dict().values() if t.ndim > 1}.values()
    )
    assert compiled.report().bytes == held


def test_layers_that_share_a_weight():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    model[1].weight = model[0].weight
    report = gqc.compile(model, scheme="int4_g32").report()
    first, second = report.rows
    assert first.weight == second.weight == "0.weight"
    assert report.bytes == first.bytes == second.bytes
    assert first.sqnr == second.sqnr == pytest.approx(measured_sqnr(model[0].weight, "int4_g32"))


def test_kernels_are_the_compiled_ones(compiled):
    for mode in ("whole", "layers"):
        _, result = compiled("llama", mode)
        names = {name for row in result.report().rows for name in row.kernels}
        assert names == {kernel.name for kernel in result.kernels}
        row = rows(result)["model.layers.1.mlp.down_proj"]
        assert all("_64x128_" in name for name in row.kernels) and len(row.kernels) > 1


def test_prints_a_table(compiled):
    _, result = compiled("llama", "whole")
    text = str(result.report())
    assert f"gqc for {result.report().target}" in text.splitlines()[0]
    for layer in ("q_proj", "down_proj", "lm_head", "embed_tokens"):
        assert layer in text
    assert "model.layers.*.mlp.down_proj (2)" in text, "alike layers share a line"
    for reason in {row.reason for row in result.report().rows}:
        assert reason in text
    quantized = [row for row in result.report().rows if row.decision != "kept"]
    assert f"{len(quantized)} of {len(result.report().rows)} weights quantized" in text


def test_prints_names_as_they_are():
    model = nn.Module()
    model.add_module("[bold]x", nn.Linear(64, 8))
    assert "[bold]x" in str(gqc.compile(model, scheme="int4_g32", target="cpu").report())


def test_an_empty_report_prints():
    assert "0 of 0 weights quantized" in str(Report("cpu_portable", ()))


def test_total_is_what_is_resident(compiled):
    """Bytes in the report are bytes held, padding of rows to whole lanes included."""
    _, result = compiled("llama", "whole")
    reported = result.report().bytes
    held = sum(t.nbytes for k, t in result.state_dict().items() if t.ndim > 1)
    assert reported == held


class Experts(nn.Module):
    """A linear layer beside an embedding tied to the head, and a bare tensor of experts."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(96, 64)
        self.experts = nn.Parameter(torch.randn(4, 64, 64))
        self.fc = nn.Linear(64, 64)
        self.lm_head = nn.Linear(64, 96, bias=False)
        self.lm_head.weight = self.embedding.weight


def test_what_the_linear_layers_alone_leave_is_listed():
    rows = {
        row.layer: row
        for row in gqc.compile(Experts(), target="cpu", scheme="int4_g32").report().rows
    }
    assert list(rows) == ["fc", "lm_head", "experts"]
    assert rows["experts"].reason == "a parameter of Experts, which is no linear layer"
    assert rows["experts"].bytes == 4 * 64 * 64 * 4
    compiled = gqc.compile(Experts(), target="cpu", scheme="int4_g32", lm_head=True)
    rows = {row.layer: row.decision for row in compiled.report().rows}
    kept = {"experts": "kept", "embedding.weight": "kept"}
    assert rows == {"fc": "emulated", "lm_head": "emulated", **kept}


def test_a_compilation_of_nothing_warns():
    with pytest.warns(UserWarning, match="every layer was kept"):
        gqc.compile(nn.Sequential(nn.Linear(64, 64)), scheme={}, target="cpu")
