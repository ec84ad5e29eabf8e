"""Transforms of compressed-tensors: its own model, whose hooks run them, is what is expected."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from compressed_tensors.transform import TransformConfig, apply_transform_config
from safetensors.torch import save
from torch import nn

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.weights import Rotated
from gqc.errors import GqcError

DOWN = "re:.*down_proj$"
WEIGHT = "model.layers.0.mlp.down_proj.weight"


def at(location: str, *targets: str, **rest: Any) -> dict[str, Any]:
    return {"targets": [*targets], "location": location, **rest}


def scheme(kind: str, *apply: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"R": {"type": kind, "apply": [*apply], **rest}}


ONLINE = at("input", DOWN)
FOLDED = at("weight_input", DOWN, inverse=True)
SCHEMES: dict[str, dict[str, Any]] = {
    "folded alone": scheme(
        "hadamard", at("weight_output", "re:.*v_proj"), at("weight_input", "re:.*o_proj")
    ),
    "hadamard": scheme("hadamard", ONLINE, FOLDED),
    "blocks": scheme("hadamard", ONLINE, FOLDED, head_dim=32),
    "by class": scheme(
        "hadamard",
        at("input", "Linear", ignore=["lm_head"]),
        at("weight_input", "Linear", inverse=True, ignore=["lm_head"]),
        head_dim=16,
    ),
    "permuted": scheme("hadamard", ONLINE, FOLDED, randomize=True),
    "random hadamard": scheme("random-hadamard", ONLINE, FOLDED),
    "inverse": scheme("random-hadamard", {**ONLINE, "inverse": True}, {**FOLDED, "inverse": False}),
    "random matrix": scheme("random-matrix", ONLINE, FOLDED, head_dim=32),
    "output": scheme("random-hadamard", at("output", "re:.*v_proj"), head_dim=32),
    "embedding": scheme("random-hadamard", at("output", "Embedding")),
}
ROTATED = {"hadamard": 128, "blocks": 32, "by class": 16}
"""Blocks of those that run as rotations of what a quantized layer reads."""


def transformed(folder: Path, transforms: dict[str, Any], quantized: bool) -> Any:
    """A model with transforms applied, and its layers quantized after, if so told; it is saved."""
    torch.manual_seed(0)
    model = small_models.llama(attention_bias=True, tie_word_embeddings=False)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    config = model.config.to_dict() | {"architectures": ["LlamaForCausalLM"]}
    apply_transform_config(model, TransformConfig(config_groups=transforms))
    tensors = {name: t.detach().clone() for name, t in model.state_dict().items()}
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    said: dict[str, Any] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    said |= {"transform_config": {"config_groups": transforms}, "config_groups": {}}
    if quantized:
        said["config_groups"] = {"a": {"targets": ["Linear"], "weights": weights}}
        for name, module in model.named_modules():
            if isinstance(module, nn.Linear) and name != "lm_head":
                scale = module.weight.abs().amax(1, keepdim=True) / 127
                codes = (module.weight / scale).round()
                module.weight.data = codes * scale
                tensors |= {f"{name}.weight": codes.char(), f"{name}.weight_scale": scale}
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": said}))
    content = save({name: t.detach().contiguous() for name, t in tensors.items()})
    (folder / "model.safetensors").write_bytes(content)
    return model


@pytest.mark.parametrize("quantized", [True, False])
@pytest.mark.parametrize("name", SCHEMES)
def test_what_the_library_computes(name: str, quantized: bool, tmp_path: Path) -> None:
    model = transformed(tmp_path, SCHEMES[name], quantized)
    ids = torch.randint(0, 96, (2, 6))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = model(ids).logits.double()
        loaded = gqc.load(tmp_path, target="cpu")
        found = loaded(ids).logits
        weight = open_checkpoint(tmp_path).read(WEIGHT)
    assert (found - expected).norm() <= 2e-5 * expected.norm()
    if quantized and name in ROTATED:
        assert isinstance(weight, Rotated) and weight.block == ROTATED[name]
        assert f"gq.rotate_channels %input blocks {ROTATED[name]}" in loaded.ir("grouped")


def test_a_weight_that_is_decoded_is_said(tmp_path: Path) -> None:
    transformed(tmp_path, SCHEMES["random hadamard"], True)
    with pytest.warns(UserWarning, match=r"down_proj.weight is decoded: R \(random-hadamard\) is"):
        open_checkpoint(tmp_path).read(WEIGHT)


@pytest.mark.parametrize(
    ("transforms", "told"),
    [
        (scheme("quip", ONLINE), "transform 'R' is 'quip', expected one of hadamard, random-"),
        (scheme("hadamard", at("middle", DOWN)), "transform 'R' is at 'middle', expected one of"),
        (scheme("hadamard", at("q_attn", "LlamaAttention"), head_dim=16), "is at q_attn: only an"),
        (
            scheme("hadamard", at("q_attn", "A"), at("k_cache", "A", inverse=True)),
            "is at q_attn, k_cache: only an orthogonal one",
        ),
        (scheme("hadamard", ONLINE, head_dim=-1), "transform 'R': head_dim is -1"),
        (scheme("hadamard", at("input", "re:(")), r"pattern '\('"),
        ({"R": 3}, "transform 'R' is no object"),
    ],
)
def test_what_is_not_known_is_named(transforms: Any, told: str, tmp_path: Path) -> None:
    transformed(tmp_path, {}, True)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["quantization_config"]["transform_config"] = {"config_groups": transforms}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GqcError, match=told):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("transforms", "told"),
    [
        (scheme("random-hadamard", ONLINE), "needs model.layers.0.mlp.down_proj.R_input.weight"),
        (scheme("hadamard", ONLINE, head_dim=48), "blocks of 48, which do not divide 128 channels"),
    ],
)
def test_what_cannot_be_read_of_a_layer(transforms: Any, told: str, tmp_path: Path) -> None:
    transformed(tmp_path, {}, True)
    config = json.loads((tmp_path / "config.json").read_bytes())
    config["quantization_config"]["transform_config"] = {"config_groups": transforms}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GqcError, match=told), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        open_checkpoint(tmp_path).read(WEIGHT)


def test_queries_and_keys_that_are_rotated_alike(tmp_path: Path) -> None:
    both = [at(location, "LlamaAttention") for location in ("q_attn", "k_cache")]
    model = transformed(tmp_path, {}, True)
    config = json.loads((tmp_path / "config.json").read_bytes())
    said = {"config_groups": scheme("hadamard", *both, head_dim=16)}
    config["quantization_config"]["transform_config"] = said
    (tmp_path / "config.json").write_text(json.dumps(config))
    ids = torch.randint(0, 96, (2, 6))
    with pytest.warns(UserWarning, match="'R' of queries and keys cancels out: it is left out"):
        found = gqc.load(tmp_path, target="cpu")(ids).logits
    expected = model(ids).logits  # the library's own hook on keys does not run
    assert (found - expected).norm() <= 2e-5 * expected.norm()
