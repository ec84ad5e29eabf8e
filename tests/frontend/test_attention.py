"""Torch's attention as four linear layers: the same outputs and weights."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.checkpoints.places import Places
from gqc.frontend.attention import Attention, is_packed
from gqc.frontend.linears import capture_linears, copy_shared

E, H, B, L, S = 64, 4, 2, 5, 7


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(E, H, dropout=0.5, **options).eval()
    for name, parameter in module.named_parameters():
        if "bias" in name:
            nn.init.normal_(parameter)
    return module


def masks(kind: str) -> dict[str, Any]:
    late = torch.ones(L, S, dtype=torch.bool).triu(2)
    padding = torch.zeros(B, S, dtype=torch.bool)
    padding[0, -2:] = True
    return {
        "none": {},
        "bool": {"attn_mask": late},
        "float": {"attn_mask": torch.randn(L, S)},
        "heads": {"attn_mask": torch.randn(B * H, L, S)},
        "padding": {"key_padding_mask": padding},
        "both": {"attn_mask": late, "key_padding_mask": padding},
        "causal": {"attn_mask": torch.ones(L, S, dtype=torch.bool).triu(1), "is_causal": True},
    }[kind]


@pytest.mark.parametrize("sizes", [{}, {"kdim": 32, "vdim": 48}, {"bias": False}], ids=str)
@pytest.mark.parametrize("batch_first", [True, False])
def test_outputs_and_weights_are_the_same(sizes: dict[str, Any], batch_first: bool) -> None:
    dense = attention(batch_first=batch_first, **sizes)
    ours = Attention(dense)
    widths = E, sizes.get("kdim", E), sizes.get("vdim", E)
    rows = [torch.randn(B, n, k) for n, k in zip((L, S, S), widths, strict=True)]
    inputs = rows if batch_first else [x.transpose(0, 1) for x in rows]
    kinds = ("none", "bool", "float", "heads", "padding", "both", "causal")
    for kind, need, mean in itertools.product(kinds, (True, False), (True, False)):
        options = masks(kind) | {"need_weights": need, "average_attn_weights": mean}
        with torch.no_grad():
            expected, weights = dense(*inputs, **options)
            found, mine = ours(*inputs, **options)
        assert torch.allclose(found, expected, atol=1e-5), kind
        assert (mine is None) == (weights is None)
        assert mine is None or torch.allclose(mine, weights, atol=1e-6), kind


def test_inputs_without_a_batch() -> None:
    for batch_first in (True, False):
        dense = attention(batch_first=batch_first)
        x, y = torch.randn(L, E), torch.randn(S, E)
        padding = torch.arange(S) > 4
        for options in ({}, {"key_padding_mask": padding}, {"need_weights": False}):
            with torch.no_grad():
                expected = dense(x, y, y, **options)
                found = Attention(dense)(x, y, y, **options)
            assert torch.allclose(found[0], expected[0], atol=1e-5)
            assert found[1] is None or torch.allclose(found[1], expected[1], atol=1e-6)


def test_what_does_more_is_left_and_named() -> None:
    assert not is_packed(attention(add_zero_attn=True))
    assert not is_packed(attention(add_bias_kv=True))
    hooked = attention()
    hooked.register_forward_hook(lambda *_: None)
    assert not is_packed(hooked)
    model = nn.ModuleDict({"a": attention(add_zero_attn=True), "b": nn.Linear(E, E)})
    with pytest.warns(UserWarning, match=r"a.out_proj \(MultiheadAttention reads its weight\)"):
        capture_linears(copy_shared(model))


def test_an_encoder_is_compiled_in_both_ways() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(E, H, 128, batch_first=True)
    model = nn.TransformerEncoder(layer, 1).eval()
    x = torch.randn(B, L, E)
    padding = torch.zeros(B, L, dtype=torch.bool)
    padding[0, -2:] = True
    for example in (None, {"src": x}):
        compiled: Any = gqc.compile(model, example, scheme="int8_g32", target="cpu")
        rows = {row.layer: row.decision for row in compiled.report().rows}
        names = ["q_proj", "k_proj", "v_proj", "out_proj"]
        assert rows.keys() >= {f"layers.0.self_attn.{name}" for name in names}
        assert "kept" not in rows.values() and len(rows) == 6
        with torch.no_grad():
            assert torch.allclose(compiled(src=x), model(src=x), atol=0.05)
    layers: Any = gqc.compile(model, scheme="int8_g32", target="cpu")
    with torch.no_grad():
        found = layers(x, src_key_padding_mask=padding)
        expected = model(x, src_key_padding_mask=padding)
    assert torch.allclose(found[~padding], expected[~padding], atol=0.05)
    assert isinstance(model.layers[0].get_submodule("self_attn"), nn.MultiheadAttention)


@pytest.mark.parametrize("sizes", [{}, {"kdim": 32, "vdim": 48}], ids=str)
def test_weights_stored_as_torch_packs_them(sizes: dict[str, int]) -> None:
    dense = nn.ModuleDict({"a": attention(**sizes)})
    ours = copy_shared(dense)
    places = Places(ours)
    found: dict[str, Any] = {}
    for name, tensor in dense.state_dict().items():
        parts = places.find(name)
        assert parts, name
        found |= {part: place.of(tensor) for part, place in parts.items()}
    state = ours.state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)
