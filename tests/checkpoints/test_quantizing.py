"""Quantizing as a checkpoint is read: which weights, what is refused, what comes out."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import small_models
import torch
from checkpoints.samples import SAMPLES
from checkpoints.test_save import check, same
from checkpoints.test_write_compressed_tensors import tiny_llama
from safetensors.torch import save_file

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.quantizing import Quantizing
from gqc.checkpoints.save import WRITERS
from gqc.checkpoints.weights import Transposed, dense
from gqc.checkpoints.writer import form_of
from gqc.errors import GqcError
from gqc.formats import packing
from gqc.formats.block_scaled import BlockScaled
from gqc.quantizers import QUANTIZERS, quantize
from gqc.schemes import parse_scheme

LINEARS = [
    *(f"self_attn.{leaf}_proj" for leaf in "qkvo"),
    *(f"mlp.{leaf}_proj" for leaf in ("gate", "up", "down")),
]
LLAMA = {f"model.layers.{i}.{leaf}.weight" for i in range(2) for leaf in LINEARS}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def numbers(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "in")
    return tmp_path / "in"


def quantizing(path: Path, scheme: Any = "int4_g32_sym", *args: Any, **options: Any) -> Quantizing:
    return Quantizing(open_checkpoint(path), scheme, *args, **options)


def test_linear_layers_are_quantized_and_every_other_parameter_has_a_reason(llama: Path) -> None:
    source = quantizing(llama)
    assert source.chosen.keys() == LLAMA
    assert source.chosen.keys() | source.kept.keys() == set(source.names())
    assert source.kept["model.embed_tokens.weight"] == "is of a Embedding, no linear layer"
    assert source.kept["model.norm.weight"] == "has 1 dimensions, not 2"


@pytest.mark.parametrize(
    "scheme", ["int4_g32", "int3_g16_sym", "int4_g32+hqq", "w4a16_nvfp4", "mxfp4"]
)
def test_a_weight_in_slices_is_the_whole_weight(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "SLICE", 1 << 12)
    dense = numbers(50, 512).bfloat16()  # seven slices
    dense[-1] *= 100  # what the tensor scale is from, in the last
    path = write(tmp_path / "in", {"model.up.weight": dense}, {})
    with pytest.warns(UserWarning, match="judged by name alone, for the config names no arch"):
        source = quantizing(path, scheme)
    said = parse_scheme(scheme)
    expected = QUANTIZERS[said.quantizer](dense.float(), said.type(), said.scale_rule)
    same(source.read("model.up.weight"), expected)
    assert source.activation("model.up.weight") == said.activation


def test_schemes_go_by_pattern_and_layers_may_be_ignored(llama: Path) -> None:
    source = quantizing(llama, {"*.mlp.*": "w4a16_mxfp4", "*": "int8_g32"}, ["model.layers.1.*"])
    found = {name: scheme.element for name, (_, scheme) in source.chosen.items()}
    assert set(found) == {name for name in LLAMA if ".0." in name}
    assert all((element == "f4E2M1FN") == ("mlp" in name) for name, element in found.items())
    assert "ignored by pattern model.layers.1.*" in source.kept.values()


def test_the_head_is_kept_unless_asked_for(tmp_path: Path) -> None:
    tensors = {"model.up.weight": numbers(32, 32), "lm_head.weight": numbers(32, 32)}
    path = write(tmp_path / "in", tensors, {})
    with pytest.warns(UserWarning, match="judged by name"):
        assert quantizing(path).kept == {"lm_head.weight": "the output head is kept by default"}
        assert not quantizing(path, lm_head=True).kept
        assert not quantizing(path, {"lm_head": "int8_g32", "*": "int4_g32"}).kept
        write(path, tensors, {"tie_word_embeddings": True})
        assert quantizing(path).kept == {
            "lm_head.weight": "its weight is shared with the embedding"
        }
        with pytest.raises(GqcError, match="lm_head is to be quantized, but the files have none"):
            quantizing(path, lm_head=True)


def test_names_decide_where_there_is_no_model(tmp_path: Path) -> None:
    linear = ("a.up_proj.weight", "a.c_attn.weight", "a.experts.3.w1.weight", "a.gate_proj.weight")
    apart = (
        *("wte.weight", "model.embed_tokens.weight", "a.norm.weight", "a.ln_1.weight"),
        *("a.gate.weight", "a.router.weight", "a.conv1.weight", "a.up_proj.scale"),
    )
    path = write(tmp_path / "in", {name: numbers(32, 64) for name in (*linear, *apart)}, {})
    with pytest.warns(UserWarning, match=r"judged by name alone.*, …"):
        assert quantizing(path).chosen.keys() == {*linear}


def test_weights_of_conv1d_are_turned(tmp_path: Path) -> None:
    """[K, N], known by the model, with or without its prefix, or by the names of its layers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=1, n_embd=64, n_head=2, vocab_size=32, n_positions=8)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "in")
    name = "transformer.h.0.attn.c_attn.weight"
    dense = open_checkpoint(tmp_path / "in").read(name)
    assert isinstance(dense, torch.Tensor) and dense.shape == (64, 192)
    source = quantizing(tmp_path / "in")
    assert len(source.chosen) == 4
    weight = source.read(name)
    assert isinstance(weight, Transposed) and isinstance(weight.weight, BlockScaled)
    assert weight.weight.codes.shape == (192, 64)
    assert (weight.dequantize() - dense).abs().max() < 0.02 * dense.abs().max() + 0.02
    gqc.save(source, tmp_path / "out")
    check_as_source(source, tmp_path / "out")
    with pytest.raises(GqcError, match=r"cannot hold 4 weights:\n.*is Transposed"):
        gqc.save(source, tmp_path / "other", "compressed-tensors")
    said = json.loads((tmp_path / "in" / "config.json").read_text())
    for prefix, architecture in (("", "GPT2LMHeadModel"), ("transformer.", "Nothing")):
        renamed = {f"{prefix}h.0.attn.c_attn.weight": dense}
        path = write(tmp_path / "other", renamed, {**said, "architectures": [architecture]})
        with pytest.warns(UserWarning, match="judged") if prefix else no_warnings():
            ((linear, _),) = quantizing(path).chosen.values()
        assert linear.transposed and linear.shape == (192, 64)


@pytest.mark.parametrize("name", ["pipeline", "AutoConfig", "Nothing", "LlamaForCausalLM"])
def test_only_models_of_transformers_are_built(name: str, tmp_path: Path) -> None:
    """And a config that one does not take is told."""
    config = {"architectures": [name], "model_type": ["llama"]}
    path = write(tmp_path / "in", {"model.up.weight": numbers(32, 32)}, config)
    with pytest.warns(UserWarning, match=r"transformers (has no model|builds no) '?[A-Za-z]+"):
        assert quantizing(path).chosen


def no_warnings() -> Any:
    import warnings

    return warnings.catch_warnings(action="error")


def check_as_source(source: Quantizing, folder: Path) -> None:
    found = open_checkpoint(folder)
    for name in source.names():
        same(found.read(name), source.read(name))
        assert found.activation(name) == source.activation(name)


def test_experts_in_three_dimensions_are_told(tmp_path: Path) -> None:
    tensors = {"a.up.weight": numbers(32, 32), "a.experts.gate_up_proj": numbers(9, 32, 32)}
    path = write(tmp_path / "in", tensors, {})
    with pytest.warns(UserWarning) as told:
        quantizing(path)
    assert (
        "1 parameter of three dimensions, such as experts' (a.experts.gate_up_proj first), stay as "
        "they are: 90% of all bytes"
    ) in [str(warning.message) for warning in told]


@pytest.mark.parametrize("scheme", ["int4_g32", "w4a16_nvfp4", "int8_row_sym"])
def test_a_stack_of_experts_is_its_matrices_one_after_the_other(
    scheme: str, tmp_path: Path
) -> None:
    model = small_models.experts("gpt_oss", num_hidden_layers=1)
    model.save_pretrained(tmp_path)
    name = "model.layers.0.mlp.experts.gate_up_proj"
    source = quantizing(tmp_path, {"*.gate_up_proj": scheme})
    assert source.chosen.keys() == {name}
    found = source.read(name)
    form = source.form(name)
    assert isinstance(found, Transposed) and form is not None
    assert form == form_of(found, None, form.origin)
    assert form.shape == (4, 128, 64)
    matrix = model.state_dict()[name].transpose(1, 2).flatten(0, 1)
    expected = quantize(matrix, parse_scheme(scheme)).dequantize()
    assert torch.equal(dense(found), expected.unflatten(0, (4, 128)).transpose(1, 2))


def test_a_stack_of_other_experts_than_the_config_says_is_refused(tmp_path: Path) -> None:
    small_models.experts("gpt_oss", num_hidden_layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_local_experts": 5}))
    with pytest.raises(GqcError, match=r"\[4, 64, 64\], but the config says \[5, 64, 64\]"):
        quantizing(tmp_path)


def test_the_config_and_the_files_must_agree(llama: Path) -> None:
    config = json.loads((llama / "config.json").read_text())
    (llama / "config.json").write_text(json.dumps({**config, "intermediate_size": 96}))
    with pytest.raises(
        GqcError, match=r"a weight is BF16 \[64, 128\], but the config says \[64, 96"
    ):
        quantizing(llama)


def test_bad_input_is_refused_before_any_work(llama: Path, tmp_path: Path) -> None:
    with pytest.raises(GqcError, match=r"not divisible by the group in 12 layers:(.*\n){13}"):
        quantizing(llama, {"*": "int4_g128_sym"})
    with pytest.raises(GqcError, match=r"no linear layer matches 'model\.layer\.\*'"):
        quantizing(llama, {"model.layer.*": "int4_g32", "*": "int4_g32"})
    with pytest.raises(GqcError, match="unknown scheme 'int9_g32'"):
        quantizing(llama, "int9_g32")
    with pytest.raises(GqcError, match="needs inputs to calibrate on"):
        quantizing(llama, "nvfp4_static")
    with pytest.raises(
        GqcError, match=r"nothing to quantize; its parameters: .*ignored by pattern"
    ):
        quantizing(llama, "int4_g32", ["*"])
    (tmp_path / "awq").mkdir()
    SAMPLES["awq"]["gemm"]().open(tmp_path / "awq")
    with pytest.raises(GqcError, match=r"is quantized already \(awq\)"):
        quantizing(tmp_path / "awq")


def test_what_a_quantizer_refuses_names_all_layers(tmp_path: Path) -> None:
    large = {f"model.{name}.weight": numbers(4, 32) * 1e30 for name in ("up", "down")}
    path = write(tmp_path / "in", {**large, "model.fine.weight": numbers(4, 32)}, {})
    words = r"model\.down\.weight \[4, 32\]: a scale overflows f16: give the scheme scale=bf16"
    with pytest.warns(UserWarning, match="judged"), pytest.raises(GqcError) as error:
        gqc.save(quantizing(path, "int4_g32_sym"), tmp_path / "out")
    assert re.search(words, str(error.value)) and "fine" not in str(error.value)
    assert re.match(r"2 parameters cannot be stored:\n  model\..*\n  model\.up", str(error.value))
    shutil.rmtree(tmp_path / "out")
    with pytest.warns(UserWarning, match="judged"):
        gqc.save(quantizing(path, "int4_g32_sym scale=bf16"), tmp_path / "out")


def test_tiny_weights_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "in", {"model.up.weight": numbers(4, 32) * 1e-9}, {})
    with (
        pytest.warns(UserWarning, match="judged"),
        pytest.warns(UserWarning, match=r"model\.up\.weight: the weight is at most .* scale=f32"),
    ):
        gqc.save(quantizing(path), tmp_path / "out")


def test_layers_that_are_merged_have_one_tensor_scale_that_has_a_divisor(
    llama: Path, tmp_path: Path
) -> None:
    source = quantizing(llama, "w4a16_nvfp4", writer=WRITERS["compressed-tensors"])
    scales = {}
    for name in sorted(LLAMA):
        weight = source.read(name)
        assert isinstance(weight, BlockScaled) and weight.tensor_scale is not None
        scales[name] = weight.tensor_scale.item()
    for i in range(2):
        layer = f"model.layers.{i}."
        assert len({scales[f"{layer}self_attn.{leaf}_proj.weight"] for leaf in "qkv"}) == 1
        assert len({scales[f"{layer}mlp.{leaf}_proj.weight"] for leaf in ("gate", "up")}) == 1
    assert len(set(scales.values())) > 6
    with no_warnings():
        gqc.save(source, tmp_path / "out", "compressed-tensors")
    check_as_source(source, tmp_path / "out")
    assert check(open_checkpoint(tmp_path / "out"), tmp_path / "out").format == "compressed-tensors"
    alone = quantizing(llama, "w4a16_nvfp4")
    assert len({alone.read(name).tensor_scale.item() for name in LLAMA}) > 10  # pyright: ignore


def test_fingerprints_differ_where_what_is_given_does(llama: Path) -> None:
    first = quantizing(llama).fingerprint()
    assert first == quantizing(llama).fingerprint()
    others = [
        quantizing(llama, "int8_g32_sym"),
        quantizing(llama, "int4_g32_sym", ["*.q_proj"]),
        quantizing(llama, writer=WRITERS["compressed-tensors"]),
    ]
    path = llama / "model.safetensors"
    path.write_bytes(path.read_bytes())
    others.append(quantizing(llama))
    assert len({first, *(other.fingerprint() for other in others)}) == 5
