"""Quantized embeddings run from their codes: the rows that are looked up are decoded."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from checkpoints.memory import Memory
from torch import nn

import gqc
from gqc.checkpoints.weights import Weight, block_scaled, dense
from gqc.quantizers import QUANTIZERS
from gqc.runtime import embedding
from gqc.runtime.embedding import QuantizedEmbedding
from gqc.schemes import parse_scheme

V, K = 40, 64
SCHEMES = ("int4_g32", "int4_g64_sym", "int3_g32", "int8_row_sym", "mxfp6", "nvfp4")


class Model(nn.Module):
    """An embedding, a layer, and a head that may be tied to the embedding."""

    def __init__(self, tied: bool, table: type[nn.Embedding] = nn.Embedding):
        super().__init__()
        self.embed, self.fc = table(V, K), nn.Linear(K, K, False)
        self.head = nn.Linear(K, V, False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.fc(self.embed(ids)))


def quantized(scheme: str, n: int = V) -> Weight:
    said = parse_scheme(scheme)
    weight = torch.randn(n, K, generator=torch.Generator().manual_seed(n))
    return QUANTIZERS[said.quantizer](weight, said.type(), said.scale_rule)


def compiled(weights: dict[str, Weight], tied: bool = False, **options: Any) -> Any:
    with torch.device("meta"):
        model = Model(tied, options.pop("table", nn.Embedding)).to(options.pop("dtype", None))
    return gqc.compile(model, weights=Memory(weights), target="cpu", **options)


def weights_of(scheme: str) -> dict[str, Weight]:
    """An embedding of a scheme, and layers of another."""
    layers = {"fc.weight": quantized("int8_g32", K), "head.weight": quantized("int8_g32", V)}
    return {"embed.weight": quantized(scheme), **layers}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_rows_are_those_of_the_dense_table(scheme: str) -> None:
    weights = weights_of(scheme)
    model = compiled(weights)
    table = dense(weights["embed.weight"])
    for shape in [(), (3,), (2, 5), (2, 1, 3), (0,)]:
        ids = torch.randint(0, V, shape)
        assert torch.equal(model.embed(ids), table[ids])
    assert torch.equal(model.embed.weight + 0, table)
    assert isinstance(model.embed, QuantizedEmbedding)
    held = sum(b.nbytes for b in model.embed.buffers())
    bits, shared = parse_scheme(scheme).type().format.bits, 4 * V * K // 32
    assert held <= V * K * bits // 8 + shared


def test_only_the_rows_that_are_looked_up_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows, unpack = compiled(weights_of("int4_g32")), [], embedding.unpack
    monkeypatch.setattr(
        embedding, "unpack", lambda words, *rest: rows.append(len(words)) or unpack(words, *rest)
    )
    model(torch.randint(0, V, (1, 7)))
    assert rows == [7]


def test_a_tied_head_reads_codes_too() -> None:
    weights = {"embed.weight": quantized("int4_g32"), "fc.weight": quantized("int8_g32", K)}
    model = compiled(weights, tied=True)
    ids = torch.randint(0, V, (2, 5))
    table, fc = (dense(weights[f"{n}.weight"], torch.float64) for n in ("embed", "fc"))
    expected = table[ids] @ fc.T @ table.T
    assert (model(ids) - expected).norm() <= 1e-6 * expected.norm()
    assert {row.layer for row in model.report().rows if row.decision != "kept"} >= {"fc", "head"}
    assert not list(model.parameters())


def test_a_model_that_is_captured_whole() -> None:
    weights, ids = weights_of("int4_g32"), torch.randint(0, V, (2, 5))
    whole = compiled(weights, example_inputs=ids)
    assert torch.allclose(whole(ids), compiled(weights)(ids), atol=1e-5)
    again = torch.compile(compiled(weights), backend="aot_eager", fullgraph=True)
    assert torch.allclose(again(ids), whole(ids), atol=1e-5)


@pytest.mark.parametrize("whole", [False, True])
def test_the_report_has_a_row_for_a_table(whole: bool) -> None:
    weights, ids = weights_of("int4_g32"), torch.zeros(2, 5, dtype=torch.long)
    report = compiled(weights, example_inputs=ids if whole else None).report()
    row = next(row for row in report.rows if row.layer == "embed")
    assert (row.weight, row.shape, row.bits) == ("embed.weight", (V, K), 5)
    assert row.bytes == V * K * 5 // 8 and row.reason == "rows are decoded as they are looked up"
    assert {row.layer for row in report.rows} == {"embed", "fc", "head"}
    assert report.bytes == sum(row.bytes for row in report.rows)


def test_formats_stay_where_a_model_is_converted() -> None:
    weights = weights_of("int4_g32")
    embed = compiled(weights).embed
    ids, table = torch.randint(0, V, (4,)), dense(weights["embed.weight"])
    assert torch.equal(copy.deepcopy(embed).to(torch.bfloat16)(ids), table[ids].bfloat16())
    assert torch.equal(compiled(weights, dtype=torch.bfloat16).embed(ids), table[ids].bfloat16())


class Scaled(nn.Embedding):
    """An embedding that does more, as Gemma's do."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return super().forward(input) * 3


def test_others_that_read_the_table_have_it_dense() -> None:
    weights, ids = weights_of("int4_g32"), torch.randint(0, V, (4,))
    model = compiled(weights, table=Scaled)
    assert torch.equal(model.embed(ids), dense(weights["embed.weight"])[ids] * 3)


def test_blocks_of_several_rows() -> None:
    codes = torch.randint(-128, 128, (V, K), dtype=torch.int8)
    table = block_scaled("si8", (8, 32), codes, torch.rand(V // 8, 2))
    model, ids = compiled({**weights_of("int4_g32"), "embed.weight": table}), torch.arange(V)
    assert torch.equal(model.embed(ids), dense(table))
    torch.library.opcheck(
        torch.ops.gqc.embedding.default,
        (ids, *model.embed.buffers(), None, None, model.embed.format, K, torch.float32),
    )
