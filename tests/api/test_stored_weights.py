"""Weights from a source in memory: what their inputs go through is folded into what is before."""

from __future__ import annotations

from pathlib import Path

import pytest
import small_models
import torch
from checkpoints.memory import Memory
from torch import nn

import gqc
from gqc.checkpoints.weights import Permuted, Prescaled, Rotated, Weight, dense
from gqc.formats.rotation import rotate
from gqc.quantizers import rtn
from gqc.schemes import parse_scheme

TYPE = parse_scheme("int8_g32").type()


class Gated(nn.Module):
    """A norm and a gated MLP, as llamas have them."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(64)
        self.gate, self.up = nn.Linear(64, 128, False), nn.Linear(64, 128, False)
        self.down = nn.Linear(128, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


def quantized(weight: torch.Tensor, how: str) -> Weight:
    """A weight so that its inputs are gathered, scaled, rotated, or neither."""
    weight, k = weight.detach(), weight.shape[1]
    if how == "order":
        order = torch.randperm(k, generator=torch.Generator().manual_seed(1))
        return Permuted(rtn(weight[:, order], TYPE, "minmax"), order)
    if how == "factor":
        factor = torch.rand(k, generator=torch.Generator().manual_seed(2)) + 0.5
        return Prescaled(rtn(weight / factor, TYPE, "minmax"), factor)
    if how == "rotation":
        return Rotated(rtn(rotate(weight, 32), TYPE, "minmax"), 32)
    return rtn(weight, TYPE, "minmax")


@pytest.fixture(params=["", "order", "factor", "rotation"])
def how(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_layer_says_its_weight(how: str) -> None:
    """In the model's own channels, whatever its input goes through."""
    layer = nn.Linear(64, 48, False)
    stored = quantized(layer.weight, how)
    compiled = gqc.compile(layer, weights=Memory({"weight": stored}), target="cpu")
    expected = dense(stored, torch.float64).float()
    torch.testing.assert_close(compiled.weight, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("whole", [True, False])
def test_every_kind_of_weight_computes_what_it_stands_for(how: str, whole: bool) -> None:
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(3, 64)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    weights = {n: quantized(t, how) if t.ndim == 2 else t for n, t in tensors.items()}
    inputs = x if whole else None
    compiled = gqc.compile(model, inputs, weights=Memory(weights), target="cpu")
    rows = {row.layer: row for row in compiled.report().rows}
    assert {row.method for row in rows.values()} == {"by hand"}
    assert {row.sqnr for row in rows.values()} == {42.0}
    reference = Gated().double().eval()
    reference.load_state_dict({n: dense(w, torch.float64) for n, w in weights.items()})
    torch.testing.assert_close(
        compiled(x).double(), reference(x.double()), rtol=0, atol=2e-6 if how != "factor" else 5e-6
    )
    again = torch.compile(compiled, fullgraph=True, backend="eager")(x)
    torch.testing.assert_close(again, compiled(x), rtol=0, atol=0)


def test_an_order_goes_into_the_rows_of_stored_weights(how: str) -> None:
    """That of `down` goes into `up` and `gate`; a factor and a rotation stay."""
    torch.manual_seed(0)
    model, x = Gated().eval(), torch.randn(3, 64)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    weights = {n: quantized(t, "") if t.ndim == 2 else t for n, t in tensors.items()}
    weights["down.weight"] = quantized(tensors["down.weight"], how)
    compiled = gqc.compile(model, x, weights=Memory(weights), target="cpu")
    called = {str(node.target) for node in compiled.graph.nodes}
    assert "aten.index_select.default" not in called
    assert ("gqc.rotate.default" in called) == (how == "rotation")
    report = {row.layer: row for row in compiled.report().rows}
    assert report["up"].bytes == report["down"].bytes
    assert not report["down"].channels or how in ("factor", "rotation")


def test_inputs_are_quantized_as_the_source_says(how: str) -> None:
    torch.manual_seed(0)
    activation = parse_scheme("mxfp8").activation
    assert activation is not None
    model, x = Gated().eval(), torch.randn(3, 64)
    tensors = {name: p.detach() for name, p in model.named_parameters()}
    weights = {n: quantized(t, how) if t.ndim == 2 else t for n, t in tensors.items()}
    source = Memory(weights, activations=dict.fromkeys(weights, activation))
    compiled = gqc.compile(model, x, weights=source, target="cpu")
    assert {row.activation for row in compiled.report().rows} == {"1x32 : f8E8M0FNU : f8E4M3FN"}
    plain = gqc.compile(model, x, weights=Memory(weights), target="cpu")
    error = (compiled(x) - plain(x)).norm() / plain(x).norm()
    assert 1e-4 < error < 0.1


def test_a_quantized_head_leaves_the_embedding_that_it_is_tied_to(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, tokens = small_models.llama(tie_word_embeddings=True), torch.arange(8)[None]
    quantized = gqc.quantize(model, scheme="int4_g32", lm_head=True)
    assert {"lm_head.weight", "model.embed_tokens.weight"} <= set(quantized.names())
    gqc.save(quantized, tmp_path)
    expected = gqc.compile(model, scheme="int4_g32", lm_head=True, target="cpu")
    for compiled in (
        gqc.compile(model, weights=quantized, target="cpu"),
        gqc.load(tmp_path, target="cpu"),
    ):
        embedding = compiled.get_input_embeddings().weight
        assert torch.equal(embedding, model.get_input_embeddings().weight)
        assert torch.equal(compiled(tokens).logits, expected(tokens).logits)


@pytest.mark.parametrize("whole", [True, False])
def test_a_head_reads_the_codes_of_the_embedding_that_it_is_tied_to(whole: bool) -> None:
    """As in a GGUF: one quantized weight, of which the embedding decodes the rows it looks up."""
    torch.manual_seed(0)
    model, tokens = small_models.llama(tie_word_embeddings=True).eval(), torch.arange(8)[None]
    model.model.embed_tokens.weight.data = (embedding := torch.randn(96, 64))
    stored = rtn(embedding, TYPE, "minmax")
    weights = {name: p.detach() for name, p in model.named_parameters()}
    weights["model.embed_tokens.weight"] = stored
    compiled = gqc.compile(model, tokens if whole else None, weights=Memory(weights), target="cpu")
    report = {row.layer: row for row in compiled.report().rows}
    assert report["lm_head"].format == stored.type.text
    assert not any("embed" in name or "head" in name for name, _ in compiled.named_parameters())
    model.model.embed_tokens.weight.data = stored.dequantize(torch.float32)
    found, expected = compiled(tokens).logits, model(tokens).logits
    assert torch.allclose(found, expected, atol=1e-4, rtol=0)
    assert expected.abs().max() > 1
