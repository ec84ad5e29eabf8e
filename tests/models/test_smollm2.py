"""A real language model, whose weights lie on an int4 grid: compiling it must lose nothing."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.weights import dense
from gqc.tools.models import SMOLLM2, fetch, smollm2, wikitext2
from gqc.tools.perplexity import perplexity, token_windows

LAYERS = 210


@pytest.fixture(scope="module")
def language_model() -> tuple[nn.Module, nn.Module, Tensor]:
    """SmolLM2-135M, the same compiled as asymmetric int4 in blocks of 32, and tokens [1, 256]."""
    model, tokenizer = smollm2()
    tokens = token_windows(tokenizer, wikitext2(), windows=1, context=256)
    return model, gqc.compile(model, scheme="int4_g32", target="cpu"), tokens


@pytest.mark.slow
def test_perplexity_is_that_of_the_float_model(language_model) -> None:
    model, compiled, tokens = language_model
    before, after = perplexity(model, tokens), perplexity(compiled, tokens)
    assert 5 < before < 100  # a real model on real text
    assert after == pytest.approx(before, rel=1e-5)


@pytest.mark.slow
def test_every_layer_is_exact_on_its_own_grid(language_model) -> None:
    rows = [row for row in language_model[1].report().rows if row.decision != "kept"]
    assert len(rows) == LAYERS
    assert {row.sqnr for row in rows} == {math.inf}
    assert {row.bits for row in rows} == {5.0}


@pytest.mark.slow
def test_no_dense_copy_is_held(language_model) -> None:
    """106.2M weights of linears at 5 bits; the tied embedding and the norms stay fp32."""
    model, compiled, _ = language_model
    dense = sum(p.numel() for name, p in model.named_parameters() if "_proj" in name)
    kept = sum(p.numel() for name, p in model.named_parameters() if "_proj" not in name)
    tensors = [*compiled.parameters(), *compiled.buffers()]
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    assert sum(held.values()) == pytest.approx(dense * 5 / 8 + kept * 4, rel=1e-4)


@pytest.mark.slow
def test_generate_says_the_same(language_model) -> None:
    model, compiled, tokens = language_model
    prompt = tokens[:, :32]
    with torch.inference_mode():
        texts = [m.generate(prompt, max_new_tokens=8, do_sample=False) for m in (model, compiled)]
    assert torch.equal(*texts)


@pytest.mark.slow
def test_its_gguf_is_read_as_transformers_reads_it(language_model) -> None:
    """To the bit, rows of rotary layers in the order of the dense model."""
    (path,) = fetch(SMOLLM2)
    checkpoint = open_checkpoint(path)
    expected = dict(language_model[0].named_parameters())
    assert set(checkpoint.names()) == expected.keys()
    for name, parameter in expected.items():
        found = dense(checkpoint.read(name), torch.float64).float()
        assert torch.equal(found, parameter.detach()), name


@pytest.mark.slow
def test_its_gguf_runs_as_it_is_stored(language_model) -> None:
    """Linears and the embedding by the codes of the file, the head by those of the embedding."""
    model, _, tokens = language_model
    (path,) = fetch(SMOLLM2)
    loaded = gqc.load(path, target="cpu")
    assert type(loaded) is type(model)
    rows = {row.layer: row for row in loaded.report().rows if row.decision != "kept"}
    assert rows.pop("lm_head").method == rows.pop("model.embed_tokens").method == "Q8_0"
    assert len(rows) == LAYERS and {row.method for row in rows.values()} == {"Q4_1"}
    assert {row.format for row in rows.values()} == {
        "1x32 : f16 : ui4, zero = f16, zero_mode = rescale"
    }
    assert perplexity(loaded, tokens) == pytest.approx(perplexity(model, tokens), rel=1e-5)
