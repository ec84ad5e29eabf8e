"""Files of GGUF run as transformers' model of the same weights, and say what they cannot follow."""

from __future__ import annotations

import re
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints.gguf_cases import (
    CASES,
    GEMMA2,
    GEMMA2_KEYS,
    GEMMA3,
    GEMMA3_KEYS,
    HEAD,
    LATENT,
    LATENT_KEYS,
    MOE,
    SHARED,
    STATES,
    STATES_KEYS,
    Case,
    scaling,
)
from checkpoints.gguf_writer import keys_of, tensors_of, tiny, write
from checkpoints.peers import blocks_of
from gguf import GGMLQuantizationType as Type

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.gguf_config import KEYS, Architecture, default_config
from gqc.checkpoints.gguf_models import ARCHITECTURES
from gqc.checkpoints.gguf_names import tensor_names
from gqc.checkpoints.weights import dense
from gqc.errors import GqcError

TOKENS = torch.randint(3, 96, (1, 120), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


@pytest.mark.filterwarnings("ignore:every layer was kept as it is")
@pytest.mark.parametrize("name", CASES)
def test_a_file_runs_as_the_model_of_transformers(name: str, tmp_path: Path) -> None:
    case, path = CASES[name], tmp_path / "model.gguf"
    model = case.write(path)
    loaded = gqc.load(path, dtype=torch.float32, target="cpu")
    assert type(loaded).__name__ == type(model).__name__
    expected = logits(model)
    assert expected.std() > 0.01 and expected.isfinite().all()
    # Weights are the same ones, so nothing but frequencies found again from factors may differ.
    assert torch.allclose(logits(loaded), expected, rtol=0, atol=2e-6 * expected.abs().max().item())


QUANTIZED = {
    "phi3: partial, a window": (Type.Q4_0, 10),
    "qwen2moe": (Type.Q5_1, 22),
    "gpt-oss": (Type.MXFP4, 14),
    "deepseek v2": (Type.Q8_0, 17),
    "qwen3next": (Type.Q8_0, 39),
}
"""Block types that weights are stored in, and the weights that are read by them."""


def quantized(case: Case, type: Type, folder: Path) -> tuple[Path, Path]:
    """Files of a model with weights in a block type, and with the same values dense."""
    model = tiny(case.model_type, **case.settings)
    tensors = case.change(dict(tensors_of(model, case.architecture)))
    keys = {k: v for k, v in (keys_of(model.config) | case.keys).items() if v is not None}
    types = {
        entry: type
        for entry, tensor in tensors.items()
        if tensor.ndim > 1 and tensor.shape[-1] % 32 == 0 and not re.search("_inp|bias", entry)
    }
    values = dict(tensors)
    for entry in types:
        stored = gguf.quants.quantize(tensors[entry].contiguous().numpy(), type)
        values[entry] = torch.from_numpy(gguf.quants.dequantize(stored, type))
    write(folder / "quantized.gguf", case.architecture, keys, tensors, types)
    write(folder / "dense.gguf", case.architecture, keys, values)
    return folder / "quantized.gguf", folder / "dense.gguf"


@pytest.mark.filterwarnings("ignore:.* decoded, and its layers run dense")
@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_weights_are_joined_and_turned_as_they_are_stored(
    name: str, tmp_path: Path
) -> None:
    case, (type, count) = CASES[name], QUANTIZED[name]
    found, expected = (open_checkpoint(path) for path in quantized(case, type, tmp_path))
    assert found.names() == expected.names()
    kept = 0
    for parameter in found.names():
        weight, values = found.read(parameter), expected.read(parameter)
        assert torch.equal(dense(weight), dense(values)), parameter
        kept += not isinstance(weight, torch.Tensor)
    assert kept == count


def test_weights_that_run_dense_are_said(tmp_path: Path) -> None:
    """Of grids, of parts in several types, and of keys that are stored transposed."""
    entries = {"attn_q": Type.Q8_0, "attn_k": Type.Q5_1, "attn_v": Type.Q8_0, "ffn_down": None}
    writer = gguf.GGUFWriter(tmp_path / "phi3.gguf", "phi3")
    values = {}
    for name, type in entries.items():
        type = type or Type.IQ2_XXS
        raw = blocks_of(type, 64, 256)
        values[name] = torch.from_numpy(gguf.quants.dequantize(raw, type))
        writer.add_tensor(f"blk.0.{name}.weight", raw, raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "phi3.gguf")
    with pytest.warns(
        UserWarning, match=r"phi3\.gguf: weights in IQ2_XXS are decoded, and run dense"
    ):
        weight = checkpoint.read("model.layers.0.mlp.down_proj.weight")
    assert torch.equal(dense(weight), values.pop("ffn_down"))
    with pytest.warns(UserWarning, match="of parts in several types: decoded, and its layers run"):
        weight = checkpoint.read("model.layers.0.self_attn.qkv_proj.weight")
    assert torch.equal(dense(weight), torch.cat([*values.values()]))
    path, _ = quantized(CASES["deepseek v2"], Type.Q8_0, tmp_path)
    with pytest.warns(UserWarning, match="stored transposed: decoded, and its layers run dense"):
        open_checkpoint(path).read("model.layers.0.self_attn.kv_b_proj.weight")


def test_experts_of_gpt_oss_run_in_mxfp4(tmp_path: Path) -> None:
    paths = quantized(CASES["gpt-oss"], Type.MXFP4, tmp_path)
    with warnings.catch_warnings(action="ignore"):
        found, expected = (gqc.load(path, dtype=torch.float32, target="cpu") for path in paths)
    rows = [row for row in found.report().rows if ".experts." in row.layer]
    assert len(rows) == 16 and {row.format for row in rows} == {"1x32 : f8E8M0FNU : f4E2M1FN"}
    assert torch.allclose(logits(found), logits(expected), rtol=0, atol=1e-5)


REFUSED: dict[str, tuple[Case, str]] = {
    **{
        f"{key} = {value}": (Case("llama", "llama", keys={key: value}), rf"llama\.{key}[ ,] *")
        for key, value in {
            "attention.scale": 0.3,
            "attention.causal": False,
            "attention.clamp_kqv": 8.0,
            "attention.max_alibi_bias": 8.0,
            "attention.sliding_window": 64,
            "attention.value_length": 32,
            "attention.temperature_scale": 0.1,
            "attention.head_count_kv": [2, 1],
            "attention.group_norm_epsilon": 1e-5,
            "attn_logit_softcapping": 30.0,
            "final_logit_softcapping": 30.0,
            "logit_scale": 0.25,
            "residual_scale": 0.5,
            "embedding_scale": 2.0,
            "feed_forward_length": [64, 32],
            "expert_gating_func": 2,
            "expert_weights_scale": 2.5,
            "use_parallel_residual": True,
            "pooling_type": 4,
            "tensor_data_layout": "reference",
            "rope.dimension_count": 8,
            "rope.dimension_sections": [4, 2, 2, 0],
            "rope.freq_base_swa": 1e5,
            "rope.scaling.type": "dynamic",
            "rope.scaling.alpha": 1000.0,
            "rope.scaling.attn_factor": 1.5,
            "rope.scaling.yarn_beta_fast": 16.0,
            "block_count": 3,
            "embedding_length": 0,
            "no_key_that_exists": 1,
        }.items()
    },
    "yarn without extrapolation": (
        Case("qwen3", "qwen3", HEAD, scaling("yarn", 4.0, 64, yarn_ext_factor=0.0)),
        "qwen3.rope.scaling.yarn_ext_factor = 0.0",
    ),
    "longrope without factors": (
        Case("phi3", "phi3", keys=scaling("longrope", 1.0)),
        "has no rope_factors_short.weight",
    ),
    "too few factors": (
        Case("llama", "llama", tensors={"rope_freqs.weight": torch.ones(4)}),
        "rope_freqs.weight has 4 factors, expected 8",
    ),
    "another gate": (
        Case("qwen3moe", "qwen3_moe", MOE, {"expert_gating_func": 2}),
        "qwen3moe.expert_gating_func is 2",
    ),
    "weights of experts normalized": (
        Case("deepseek2", "deepseek_v2", LATENT, LATENT_KEYS | {"expert_weights_norm": True}),
        "deepseek2.expert_weights_norm = True",
    ),
    "a pattern of too few layers": (
        Case("gemma3", "gemma3_text", GEMMA3, {"attention.sliding_window_pattern": [True]}),
        "attention.sliding_window_pattern is for 1 layers",
    ),
    "a pattern that is none": (
        Case("gemma3", "gemma3_text", GEMMA3, {"attention.sliding_window_pattern": "all"}),
        "attention.sliding_window_pattern is 'all'",
    ),
    "a pattern of a model without": (
        Case(
            "phi3",
            "phi3",
            keys={"attention.sliding_window": 16, "attention.sliding_window_pattern": 2},
        ),
        "phi3.attention.sliding_window_pattern = 2",
    ),
    "states of too few layers": (
        Case("qwen3next", "qwen3_next", SHARED | STATES, {"attention.recurrent_layers": [True]}),
        "attention.recurrent_layers is for 1 layers",
    ),
    "blocks of further tokens alone": (
        Case("llama", "llama", keys={"nextn_predict_layers": 2}),
        "nextn_predict_layers is 2, of 2 blocks",
    ),
    "heads that rotate whole": (
        Case("deepseek2", "deepseek_v2", LATENT, LATENT_KEYS | {"attention.key_length_mla": 8}),
        "attention.key_length_mla is 8, of which 8 rotate",
    ),
    "another size of latent vectors": (
        Case("deepseek2", "deepseek_v2", LATENT, LATENT_KEYS | {"attention.value_length": 48}),
        "deepseek2.attention.value_length = 48",
    ),
    "heads that do not divide states": (
        Case("llama", "llama", keys={"attention.head_count": 3}),
        r"model\.gguf: no llama has these hyperparameters: ",
    ),
    "more layers than any model has": (
        Case("llama", "llama", tensors={"blk.99999.attn_norm.weight": torch.ones(8)}),
        "block_count is 2, the file has 100000 blocks",
    ),
    "many layers": (
        Case("llama", "llama", keys={"block_count": 100_000}),
        "block_count is 100000, expected at most 1024",
    ),
    "heads in words": (
        Case("llama", "llama", keys={"attention.head_count": "four"}),
        "attention.head_count is 'four', expected a number",
    ),
    "an array of words": (
        Case("llama", "llama", keys={"attention.head_count": ["four"]}),
        r"attention.head_count is Texts\(count=1\), expected a number",
    ),
    "a base of its own": (
        Case("gemma2", "gemma2", GEMMA2, GEMMA2_KEYS | {"rope.freq_base_swa": 1e6}),
        "gemma2.rope.freq_base_swa = 1000000.0",
    ),
    "scaled twice": (
        Case(
            "llama",
            "llama",
            keys=scaling("linear", 4.0),
            tensors={"rope_freqs.weight": torch.arange(1.0, 9.0)},
        ),
        "rope.scaling.factor is 4.0, and rope_freqs.weight scales too",
    ),
    "factors of zero": (
        Case("llama", "llama", tensors={"rope_freqs.weight": torch.zeros(8)}),
        "rope_freqs.weight has factors that are not positive numbers",
    ),
    "factors in rows": (
        Case("llama", "llama", tensors={"rope_freqs.weight": torch.ones(2, 8)}),
        r"rope_freqs.weight is of type 0 \[2, 8\], not F32",
    ),
    "scores of Gemma 3": (
        Case("gemma3", "gemma3_text", GEMMA3, GEMMA3_KEYS | {"attn_logit_softcapping": 50.0}),
        "gemma3.attn_logit_softcapping = 50.0",
    ),
    "yarn without a context": (
        Case("qwen3", "qwen3", HEAD, scaling("yarn", 4.0) | {"context_length": None}),
        "qwen3.context_length is not there",
    ),
    "granite without positions": (
        Case("granite", "granite", keys={"rope.scaling.finetuned": False}),
        "granite.rope.scaling.finetuned is False",
    ),
    "states that heads do not divide": (
        Case("qwen3next", "qwen3_next", SHARED | STATES, {**STATES_KEYS, "ssm.inner_size": 33}),
        "ssm.inner_size is 33, for 4 heads",
    ),
    "an adapter": (
        Case("llama", "llama", keys={":general.type": "adapter"}),
        "general.type is 'adapter'",
    ),
    **{
        name: (Case("llama", "llama", tensors={name: torch.ones(64)}), f"{name}: the model llama")
        for name in (
            *("output.bias", "blk.0.attn_sinks.weight", "blk.0.attn_q_norm.weight"),
            *("blk.0.ffn_down.scale", "blk.0.exp_probs_b.bias", "token_embd_norm.weight"),
            *("blk.1.attn_norm.bias", "cls.weight", "blk.0.ffn_gate_inp.weight"),
        )
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_model_cannot_follow_is_refused_by_name(name: str, tmp_path: Path) -> None:
    case, message = REFUSED[name]
    case.write(tmp_path / "model.gguf")
    with pytest.raises(GqcError, match=message):
        open_checkpoint(tmp_path / "model.gguf")


@pytest.mark.parametrize(
    ("architecture", "blocks", "hidden", "head", "scale"),
    [
        ("gemma3", 62, 5376, 128, 168),  # 27B: hidden states over heads
        ("gemma3", 48, 3840, 256, 256),  # 12B: the size of a head
        ("gemma2", 46, 4608, 128, 144),
    ],
)
def test_attention_of_gemma_is_scaled_by_its_size(
    architecture: str, blocks: int, hidden: int, head: int, scale: int, tmp_path: Path
) -> None:
    keys = {"block_count": blocks, "embedding_length": hidden, "attention.head_count": 32}
    keys |= {"attention.key_length": head, "attention.value_length": head}
    write(tmp_path / "model.gguf", architecture, keys, {"output_norm.weight": torch.ones(8)})
    config = open_checkpoint(tmp_path / "model.gguf").config
    assert config["query_pre_attn_scalar"] == scale


def test_biases_that_no_block_has_are_missing(tmp_path: Path) -> None:
    """They are zero only beside others."""
    case = Case(
        "qwen2", "qwen2", change=lambda ts: {n: t for n, t in ts.items() if "bias" not in n}
    )
    case.write(tmp_path / "model.gguf")
    with pytest.raises(
        GqcError, match=r"6 parameters of Qwen2ForCausalLM not stored: .*q_proj\.bias"
    ):
        gqc.load(tmp_path / "model.gguf")


@pytest.mark.filterwarnings("ignore:every layer was kept as it is")
def test_a_bias_that_one_block_has_is_zero_in_others(tmp_path: Path) -> None:
    model = tiny("llama", attention_bias=True)
    last = "model.layers.1.self_attn.o_proj.bias"
    for name, tensor in model.state_dict().items():
        if name.endswith("bias") and name != last:
            tensor.zero_()
    tensors = {n: t for n, t in tensors_of(model, "llama") if "bias" not in n or t.any()}
    assert [name for name in tensors if "bias" in name] == ["blk.1.attn_output.bias"]
    write(tmp_path / "model.gguf", "llama", keys_of(model.config), tensors)
    loaded = gqc.load(tmp_path / "model.gguf", dtype=torch.float32, target="cpu")
    assert torch.equal(logits(loaded), logits(model))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("llama", "attention.layer_norm_rms_epsilon"),
        ("llama", "attention.head_count"),
        ("qwen3moe", "expert_used_count"),
        ("gpt-oss", "attention.sliding_window"),
    ],
)
def test_a_model_needs_what_only_its_metadata_can_say(name: str, key: str, tmp_path: Path) -> None:
    case = CASES[name]
    replace(case, keys=case.keys | {key: None}).write(tmp_path / "model.gguf")
    with pytest.raises(GqcError, match=f"has no {name}.{key}"):
        gqc.load(tmp_path / "model.gguf")


def test_blocks_of_another_version_are_refused(tmp_path: Path) -> None:
    keys = {":general.quantization_version": 1}
    tensors = {"blk.0.ffn_down.weight": torch.ones(8, 32)}
    write(tmp_path / "model.gguf", "llama", keys, tensors, dict.fromkeys(tensors, Type.Q4_0))
    with pytest.raises(GqcError, match="quantization_version is 1, expected 2: convert the model"):
        open_checkpoint(tmp_path / "model.gguf")


def test_what_is_not_installed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Case("llama", "llama").write(tmp_path / "model.gguf")
    with pytest.raises(GqcError, match="this transformers has no modelnet: pip install -U"):
        default_config("modelnet")
    with pytest.raises(GqcError, match="this gguf package has no modelnet: pip install -U gguf"):
        tensor_names("modelnet", 1)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(GqcError, match="transformers': pip install transformers"):
        open_checkpoint(tmp_path / "model.gguf")


def test_rows_that_are_no_pairs_are_refused(tmp_path: Path) -> None:
    case = Case("llama", "llama", tensors={"blk.0.attn_q.weight": torch.ones(6, 64)})
    case.write(tmp_path / "model.gguf")
    with pytest.raises(GqcError, match=r"blk\.0\.attn_q\.weight has 6 rows, for 4 heads"):
        open_checkpoint(tmp_path / "model.gguf").read("model.layers.0.self_attn.q_proj.weight")


def test_keys_are_those_of_transformers(tmp_path: Path) -> None:
    """transformers reads some of them, for the architectures that it knows."""
    from transformers.integrations.ggml import GGUF_CONFIG_MAPPING

    for architecture, model_type in (
        *(("llama", "llama"), ("qwen3", "qwen3"), ("gemma2", "gemma2"), ("phi3", "phi3")),
        *(("qwen2moe", "qwen2_moe"), ("qwen3moe", "qwen3_moe"), ("gpt-oss", "gpt_oss")),
    ):
        case = next(c for c in CASES.values() if c.model_type == model_type and not c.change({}))
        case.write(tmp_path / "model.gguf")
        metadata = gguf.GGUFReader(tmp_path / "model.gguf").fields
        config = open_checkpoint(tmp_path / "model.gguf").config
        theirs = GGUF_CONFIG_MAPPING.get(model_type) or GGUF_CONFIG_MAPPING[architecture]
        checked = 0
        for key, name in theirs.items():
            field = metadata.get(f"{architecture}.{key}")
            if field is None or name is None or name not in config:
                continue
            assert config[name] == field.contents(), (architecture, key)
            checked += 1
        assert checked > 4


OF_CONFIG = {
    **{"attn_logit_softcapping": 0.9, "final_logit_softcapping": 0.9, "logit_scale": 0.5},
    **{"logits_scaling": 3.0, "residual_multiplier": 0.3, "embedding_multiplier": 2.0},
    **{"routed_scaling_factor": 3.0, "norm_topk_prob": None, "num_experts_per_tok": 1},
    **{"rms_norm_eps": 0.1, "layer_norm_eps": 0.1, "topk_group": 2},
}
"""Other values of keys of config.json, None for the other truth."""


def test_what_is_read_changes_what_models_compute() -> None:
    """A config may have a key that its model does not follow: such a key is to be refused."""
    checked: set[tuple[str, str]] = set()
    for case in CASES.values():
        found = architecture_of_case(case)
        possible = default_config(case.model_type)
        for key, names in (KEYS | found.keys).items():
            name = next((name for name in names if hasattr(possible, name)), None)
            if name not in OF_CONFIG or (case.model_type, name) in checked:
                continue
            checked.add((case.model_type, name))
            model = tiny(case.model_type, **case.settings)
            value = OF_CONFIG[name]
            value = not getattr(model.config, name) if value is None else value
            if name == "topk_group" and getattr(model.config, "n_group", 1) in (None, 1):
                continue
            other = tiny(case.model_type, **case.settings | {name: value})
            assert not torch.equal(logits(model), logits(other)), (case.model_type, key)
    assert len(checked) > 30


def architecture_of_case(case: Case) -> Architecture:
    rows = ARCHITECTURES[case.architecture]
    return next(row for row in rows if row.model_type == case.model_type)


def test_the_scale_of_a_tensor_in_nvfp4_is_beside_it(tmp_path: Path) -> None:
    type = gguf.GGMLQuantizationType.NVFP4
    raw = blocks_of(type, 8, 64)
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_tensor("blk.0.ffn_down.weight", raw, raw_dtype=type)
    writer.add_tensor("blk.0.ffn_down.scale", np.full(1, 0.37, np.float32))
    writer.add_tensor("blk.0.ffn_down.input_scale", np.full(1, 2.0, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weight = open_checkpoint(tmp_path / "model.gguf").read("model.layers.0.mlp.down_proj.weight")
    assert str(getattr(weight, "type", "")).endswith("f4E2M1FN, global = f32>")
    expected = torch.from_numpy(gguf.quants.dequantize(raw, type)).double() * float(
        np.float32(0.37)
    )
    assert torch.allclose(dense(weight, torch.float64), expected, rtol=1e-12, atol=0)
