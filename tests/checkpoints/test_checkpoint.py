"""Opening checkpoints: what tells formats apart, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from checkpoints.packed import awq, modelopt, plain
from checkpoints.peers import GGUF
from checkpoints.sample import LAYER
from checkpoints.samples import SAMPLES
from safetensors.torch import save_file

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.errors import GqcError


@pytest.mark.parametrize("format", SAMPLES)
def test_the_format_is_told_by_the_files(format: str, tmp_path: Path) -> None:
    checkpoint = next(iter(SAMPLES[format].values()))().open(tmp_path)
    assert checkpoint.format == format.replace("_", "-")
    assert checkpoint.config.get("model_type", "llama") in ("llama", "gpt_oss")


def test_modelopt_is_told_by_its_own_config(tmp_path: Path) -> None:
    sample = modelopt("NVFP4")
    quantization = json.loads(sample.files["config.json"])["quantization_config"]
    del quantization["quant_method"]
    sample.files["config.json"] = b'{"model_type": "llama"}'
    sample.files["hf_quant_config.json"] = json.dumps(
        {"producer": {"name": "modelopt"}, "quantization": quantization}
    ).encode()
    assert sample.check(tmp_path).format == "modelopt"


def test_one_file_is_a_checkpoint(tmp_path: Path) -> None:
    plain(1).open(tmp_path)
    names = open_checkpoint(tmp_path / "model.safetensors").names()
    assert names == [f"model.layers.{i}.weight" for i in range(4)]


def test_gguf_is_found_in_a_folder_and_read_by_name(tmp_path: Path) -> None:
    sample = GGUF["q4_0"]()
    said = {"model_type": "llama", "hidden_size": 256, "num_hidden_layers": 1, "vocab_size": 32}
    said |= {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": True}
    config = sample.open(tmp_path).config
    assert {key: config[key] for key in said} == said
    assert open_checkpoint(tmp_path / "model.gguf").format == "gguf"
    (tmp_path / "other.gguf").write_bytes(sample.files["model.gguf"])
    with pytest.raises(GqcError, match="2 GGUF files; open one of them"):
        open_checkpoint(tmp_path)


def test_an_unknown_method_is_named(tmp_path: Path) -> None:
    sample = awq("gemm")
    config = {"quantization_config": {"quant_method": "colours"}}
    sample.files["config.json"] = json.dumps(config).encode()
    with pytest.raises(GqcError, match=r"quant_method is 'colours', expected one of gqc, awq, "):
        sample.open(tmp_path)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "qmodel.pt", "model.pth", "model.pkl"])
def test_pickles_are_not_opened(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    torch.save({"weight": torch.zeros(2)}, path)
    for opened in (path, tmp_path):
        with pytest.raises(GqcError, match=f"{name} is a pickle, which runs code when opened"):
            open_checkpoint(opened)


def test_nothing_to_open_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GqcError, match="no such file or folder"):
        open_checkpoint(tmp_path / "nowhere")
    with pytest.raises(GqcError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path)
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(GqcError, match="no readable safetensors file"):
        open_checkpoint(tmp_path / "notes.txt")


def test_an_unknown_parameter_is_an_error(tmp_path: Path) -> None:
    checkpoint = awq("gemm").open(tmp_path)
    for name in ("model.layers.1.mlp.down_proj.weight", f"{LAYER}.up", ""):
        with pytest.raises(GqcError, match="no parameter is called"):
            checkpoint.read(name)


def test_tensors_are_read_one_at_a_time(tmp_path: Path) -> None:
    """Opening reads headers: a file with damaged data opens, and its other tensors are read."""
    good, bad = torch.ones(4, 4), torch.full((4, 4), torch.nan)
    save_file({"good.weight": good, "bad.weight": bad}, tmp_path / "model.safetensors")
    checkpoint = open_checkpoint(tmp_path)
    assert torch.equal(checkpoint.read("good.weight"), good)  # pyright: ignore[reportArgumentType]
    with pytest.raises(GqcError, match=r"bad\.weight \(F32 \[4, 4\]\) holds inf or NaN"):
        checkpoint.read("bad.weight")
