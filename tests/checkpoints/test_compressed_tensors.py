"""compressed-tensors: which group a layer is of, and groups without weights."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from checkpoints.sample import LAYER, Sample, generator
from safetensors.torch import save

import gqc
from gqc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gqc.checkpoints.weights import dense
from gqc.errors import GqcError

N, K = 96, 64
LINEAR, EMBEDDING = f"{LAYER}.weight", "model.embed_tokens.weight"
ATTENTION = {"targets": ["LlamaAttention"], "weights": None, "input_activations": {"num_bits": 8}}


def bits(number: int, *targets: str) -> dict[str, Any]:
    weights = {"num_bits": number, "type": "int", "strategy": "channel", "symmetric": True}
    return {"targets": [*targets], "weights": weights, "format": "int-quantized"}


def checkpoint(folder: Path, groups: Any, model: bool = True, **config: Any) -> Checkpoint:
    """A linear layer of codes of 4 bits and an embedding of codes of 8, which 4 cannot hold."""
    tensors = {}
    for name, number in ((LAYER, 4), (EMBEDDING.removesuffix(".weight"), 8)):
        half = 1 << number - 1
        codes = torch.randint(-half, half, (N, K), generator=generator(number))
        codes[0, 0] = -half
        tensors |= {f"{name}.weight": codes.char(), f"{name}.weight_scale": torch.ones(N, 1)}
    said = {"quant_method": "compressed-tensors", "config_groups": groups, **config}
    llama = small_models.llama(vocab_size=N, hidden_size=K, intermediate_size=K).config.to_dict()
    settings = {**llama, "architectures": ["LlamaForCausalLM"]} if model else {}
    files = {
        "config.json": json.dumps({**settings, "quantization_config": said}).encode(),
        "model.safetensors": save(tensors),
    }
    return Sample(files, {}).open(folder)


@pytest.mark.parametrize("model", [True, False])
@pytest.mark.parametrize(
    "groups",
    [
        {"a": bits(8, "Embedding"), "b": bits(4, "Linear")},
        {"a": bits(4, "Linear"), "b": bits(8, "Embedding")},
        {"a": bits(4, "Linear"), "b": bits(8, "re:.*embed_tokens")},
        {"a": bits(8, "Linear", "Embedding"), "b": bits(4, LAYER)},
        {"a": bits(4, r"re:.*mlp\..*"), "b": bits(8, EMBEDDING.removesuffix(".weight"))},
    ],
    ids=str,
)
def test_a_layer_is_of_the_group_of_its_name_or_class(
    groups: Any, model: bool, tmp_path: Path
) -> None:
    opened = checkpoint(tmp_path, groups, model)
    assert {name: opened.read(name).type.format.name for name in (LINEAR, EMBEDDING)} == {  # pyright: ignore
        LINEAR: "si4",
        EMBEDDING: "si8",
    }


@pytest.mark.parametrize("groups", [{"a": bits(4, "Linear")}, {"a": bits(4, "re:.*mlp.*")}])
@pytest.mark.parametrize("model", [True, False])
def test_a_layer_of_no_group_is_refused(groups: Any, model: bool, tmp_path: Path) -> None:
    opened = checkpoint(tmp_path, groups, model)
    assert opened.read(LINEAR).type.format.name == "si4"  # pyright: ignore
    told = r"embed_tokens is quantized, but no group .* its class \(Embedding\); the groups target"
    with pytest.raises(GqcError, match=told):
        opened.read(EMBEDDING)


def test_a_target_that_nothing_is_called(tmp_path: Path) -> None:
    groups = {"a": bits(4, "Linear"), "b": bits(8, "Embeding")}
    with pytest.raises(GqcError, match="'Embeding' is a target, but no layer and no class"):
        checkpoint(tmp_path, groups)


def test_attention_and_its_cache_are_left_and_said(tmp_path: Path) -> None:
    groups = {"a": ATTENTION, "b": bits(4, "Linear"), "c": bits(8, "Embedding")}
    with pytest.warns(UserWarning, match="a, which has no weights, kv_cache_scheme: attention"):
        opened = checkpoint(tmp_path, groups, kv_cache_scheme={"num_bits": 8, "type": "float"})
    assert opened.read(LINEAR).type.format.name == "si4"  # pyright: ignore


@pytest.mark.parametrize("groups", [{}, {"a": ATTENTION}])
def test_a_cache_alone_is_quantized(groups: Any, tmp_path: Path) -> None:
    """Weights are dense, and scales of the cache are no parameters."""
    torch.manual_seed(0)
    model = small_models.llama()
    model.save_pretrained(tmp_path)
    tensors = dict(model.state_dict())
    scales = {f"model.layers.0.self_attn.{k}_scale": torch.ones(1) for k in ("k", "v", "q")}
    (tmp_path / "model.safetensors").write_bytes(save({**tensors, **scales}, {"format": "pt"}))
    config = json.loads((tmp_path / "config.json").read_bytes())
    said = {"quant_method": "compressed-tensors", "config_groups": groups}
    config["quantization_config"] = {**said, "kv_cache_scheme": {"num_bits": 8, "type": "float"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.warns(UserWarning, match="kv_cache_scheme: attention and its cache are left"):
        opened = open_checkpoint(tmp_path)
    assert set(opened.names()) == set(tensors)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = gqc.load(tmp_path, target="cpu")
    ids = torch.randint(0, 96, (1, 5))
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    assert torch.equal(dense(opened.read(LINEAR)), model.get_parameter(LINEAR))


def test_no_groups_at_all(tmp_path: Path) -> None:
    with pytest.raises(GqcError, match="config_groups is empty"):
        checkpoint(tmp_path, {})
