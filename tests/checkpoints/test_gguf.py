"""Files of GGUF run as transformers' model of the same weights, and say what they cannot follow."""

from __future__ import annotations

import math
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from checkpoints.gguf_writer import DEFAULT, keys_of, tensors_of, tiny, write
from checkpoints.peers import blocks_of
from gguf import GGMLQuantizationType as Type

import gqc
from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.gguf_config import KEYS, Architecture, default_config
from gqc.checkpoints.gguf_models import ARCHITECTURES
from gqc.checkpoints.weights import dense
from gqc.errors import GqcError

TOKENS = torch.randint(3, 96, (1, 120), generator=torch.Generator().manual_seed(1))

Keys = dict[str, Any]
Tensors = dict[str, torch.Tensor]


@dataclass
class Case:
    """A model, the keys that its file has besides or (None) has not, and tensors likewise."""

    architecture: str
    model_type: str
    settings: Keys = field(default_factory=dict)
    keys: Keys = field(default_factory=dict)
    tensors: dict[str, torch.Tensor | None] = field(default_factory=dict)
    change: Callable[[Tensors], Tensors] = lambda tensors: tensors

    def write(self, path: Path) -> Any:
        model = tiny(self.model_type, **self.settings)
        keys = {k: v for k, v in (keys_of(model.config) | self.keys).items() if v is not None}
        tensors = self.change(dict(tensors_of(model, self.architecture))) | self.tensors
        write(path, self.architecture, keys, {k: v for k, v in tensors.items() if v is not None})
        return model


def yarn(**more: Any) -> Keys:
    rope = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    return {"rope_parameters": {"rope_theta": 5e4} | rope | more}


def scaling(kind: str, factor: float, context: int | None = None, **more: Any) -> Keys:
    keys: Keys = {"rope.scaling.type": kind, "rope.scaling.factor": factor}
    if context is not None:
        keys["rope.scaling.original_context_length"] = context
    return keys | {f"rope.scaling.{key}": value for key, value in more.items()}


def llama3(low: float, high: float, factor: float, context: int, dim: int = 16) -> torch.Tensor:
    """What frequencies are divided by, as the converter computes it."""
    factors = []
    for i in range(0, dim, 2):
        turns = context * 5e4 ** (-i / dim) / (2 * math.pi)
        smooth = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return torch.tensor(factors)


def llama3_rope(low: float, high: float, factor: float, context: int) -> Keys:
    rope = {"rope_type": "llama3", "rope_theta": 5e4, "factor": factor, "low_freq_factor": low}
    rope |= {"high_freq_factor": high, "original_max_position_embeddings": context}
    return {"rope_parameters": rope}


def listed(short: list[float], long: list[float], attention: float = 1.0) -> Keys:
    rope = {"rope_type": "longrope", "rope_theta": 5e4, "short_factor": short}
    rope |= {"long_factor": long, "attention_factor": attention}
    return {"rope_parameters": rope | {"original_max_position_embeddings": 64}}


def qkv_in_one(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if ".attn_q." in name]:
        parts = [tensors.pop(name.replace("attn_q.", f"attn_{x}.")) for x in "qkv"]
        tensors[name.replace("attn_q.", "attn_qkv.")] = torch.cat(parts)
    return tensors


def qkv_apart(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if ".attn_qkv." in name]:
        for x, part in zip("qkv", tensors.pop(name).split([64, 32, 32]), strict=True):
            tensors[name.replace("attn_qkv", f"attn_{x}")] = part
    return tensors


def experts_apart(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if "_exps" in name]:
        for i, expert in enumerate(tensors.pop(name)):
            tensors[name.replace("_exps", f".{i}")] = expert
    return tensors


def gates_in_one(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if "ffn_gate_exps" in name]:
        both = [tensors.pop(name), tensors.pop(name.replace("gate", "up"))]
        tensors[name.replace("gate", "gate_up")] = torch.cat(both, 1)
    return tensors


def latent_in_one(tensors: Tensors) -> Tensors:
    for name in [name for name in tensors if "attn_k_b" in name]:
        k, v = tensors.pop(name), tensors.pop(name.replace("k_b", "v_b"))
        both = torch.cat([k.transpose(1, 2), v], 1).flatten(0, 1)
        tensors[name.replace("k_b", "kv_b")] = both
    return tensors


def with_one_norm(tensors: Tensors) -> Tensors:
    """Parallel branches have one norm; the model's other one is not used."""
    return {name: tensor for name, tensor in tensors.items() if "ffn_norm" not in name}


def without_biases_of_o(tensors: Tensors) -> Tensors:
    """The model's are zero then."""
    for name in [name for name in tensors if name.endswith("attn_output.bias")]:
        tensors.pop(name).zero_()
    return tensors


HEAD = {"head_dim": 16}
LOCAL = {"rope_type": "default", "rope_theta": 1e4}
FULL = {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6}
GEMMA3 = {"head_dim": 16, "num_hidden_layers": 7, "sliding_window": 16}
GEMMA3 |= {"query_pre_attn_scalar": 16}
GEMMA3 |= {"rope_parameters": {"sliding_attention": LOCAL, "full_attention": FULL}}
GEMMA3_KEYS = scaling("linear", 8.0) | {"attention.sliding_window": 16}
GEMMA2 = {"head_dim": 16, "sliding_window": 16, "query_pre_attn_scalar": 16}
GEMMA2 |= {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}
GEMMA2_KEYS = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 1.0}
GEMMA2_KEYS |= {"attention.sliding_window": 16}
MOE = {"moe_intermediate_size": 32, "num_experts": 4, "num_experts_per_tok": 2}
SHARED = MOE | {"shared_expert_intermediate_size": 64}
LATENT = {"num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4}
LATENT |= {"num_experts_per_tok": 2, "n_shared_experts": 1, "first_k_dense_replace": 1}
LATENT |= {"kv_lora_rank": 32, "q_lora_rank": 24, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8}
LATENT |= {"v_head_dim": 16, "head_dim": 8, "n_group": 1, "topk_group": 1}
LATENT_KEYS = {"attention.kv_lora_rank": 32, "attention.q_lora_rank": 24, "expert_count": 4}
LATENT_KEYS |= {"attention.head_count_kv": 1, "attention.key_length": 40}
LATENT_KEYS |= {"attention.value_length": 32, "attention.key_length_mla": 24}
LATENT_KEYS |= {"attention.value_length_mla": 16, "rope.dimension_count": 8}
LATENT_KEYS |= {"leading_dense_block_count": 1, "expert_shared_count": 1}
LATENT_KEYS |= {"expert_weights_scale": 1.5}
STATES = {"linear_key_head_dim": 16, "linear_value_head_dim": 8, "linear_num_key_heads": 2}
STATES |= {"linear_num_value_heads": 4, "num_hidden_layers": 4, "head_dim": 16}
STATES_KEYS = {"ssm.conv_kernel": 4, "ssm.state_size": 16, "ssm.group_count": 2}
STATES_KEYS |= {"ssm.time_step_rank": 4, "ssm.inner_size": 32, "full_attention_interval": 4}
GRANITE = {"embedding_multiplier": 3.0, "logits_scaling": 2.0, "residual_multiplier": 0.5}
GRANITE_KEYS = {"embedding_scale": 3.0, "logit_scale": 2.0, "residual_scale": 0.5}
OSS = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 16, "head_dim": 16}
PARTIAL = {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}
LONG = {"rope_factors_short.weight": torch.arange(1.0, 9.0)}
LONG |= {"rope_factors_long.weight": torch.arange(2.0, 10.0)}
LISTS = LONG["rope_factors_short.weight"].tolist(), LONG["rope_factors_long.weight"].tolist()
OLMO3 = {"sliding_attention": DEFAULT, "full_attention": yarn()["rope_parameters"]}

CASES: dict[str, Case] = {
    "llama": Case("llama", "llama", HEAD, {"rope.dimension_count": 16}),
    "llama: what changes nothing": Case(
        "llama",
        "llama",
        keys={
            **{"attention.causal": True, "attention.scale": 0.25, "expert_count": 0},
            **{"pooling_type": 3, "rope.scaling.finetuned": False, "vocab_size": 32000},
            **{"attention.head_count_kv": [2, 2], "rope.scaling.type": "linear"},
            **{":general.type": "model", ":writer.note": "x", ":tokenizer.ggml.tokens": ["a"]},
        },
        tensors={"blk.0.attn_rot_embd.weight": torch.ones(8), "rope_freqs.weight": torch.ones(8)},
    ),
    "glm4: blocks of further tokens": Case(
        "glm4",
        "glm4",
        HEAD | PARTIAL,
        {"rope.dimension_count": 8, "block_count": 3, "nextn_predict_layers": 1},
        {"blk.2.nextn.eh_proj.weight": torch.ones(4, 4), "blk.2.attn_q.weight": torch.ones(4, 4)},
    ),
    "llama: biases": Case("llama", "llama", HEAD | {"attention_bias": True, "mlp_bias": True}),
    "llama: linear": Case(
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}},
        scaling("linear", 4.0),
    ),
    "llama: linear by its old key": Case(
        "llama",
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e4}},
        {"rope.scale_linear": 4.0},
    ),
    "llama: a factor without scaling": Case("llama", "llama", {}, scaling("none", 4.0)),
    "llama: llama3": Case(
        "llama",
        "llama",
        llama3_rope(1.0, 4.0, 32.0, 8192),
        tensors={"rope_freqs.weight": llama3(1.0, 4.0, 32.0, 8192)},
    ),
    "llama: another llama3": Case(
        "llama",
        "llama",
        llama3_rope(0.5, 32.0, 8.0, 1024) | {"head_dim": 32},
        tensors={"rope_freqs.weight": llama3(0.5, 32.0, 8.0, 1024, 32)},
    ),
    "llama: any factors": Case(
        "llama",
        "llama",
        listed(LISTS[0], LISTS[0]),
        tensors={"rope_freqs.weight": torch.arange(1.0, 9.0)},
    ),
    "llama: qkv in one": Case("llama", "llama", change=qkv_in_one),
    "qwen2: qkv in one": Case("qwen2", "qwen2", change=qkv_in_one),
    "llama: only q, k and v with biases": Case(
        "llama",
        "llama",
        {"attention_bias": True},
        change=without_biases_of_o,
    ),
    "mixtral": Case("llama", "mixtral", HEAD | {"num_local_experts": 4}),
    "mixtral: a tensor for each expert": Case(
        "llama", "mixtral", {"num_local_experts": 4}, {"expert_count": None}, change=experts_apart
    ),
    "qwen3moe: gates and others in one": Case(
        "qwen3moe", "qwen3_moe", MOE | {"norm_topk_prob": True}, change=gates_in_one
    ),
    "phi3: q, k and v apart": Case("phi3", "phi3", change=qkv_apart),
    "qwen3: heads of another size": Case("qwen3", "qwen3", {"head_dim": 32}),
    "mistral": Case("mistral3", "mistral", HEAD | {"sliding_window": None}),
    "ministral": Case(
        "mistral3",
        "ministral3",
        HEAD | yarn(mscale=1.0, mscale_all_dim=1.0, llama_4_scaling_beta=0.3),
        scaling("yarn", 4.0, 64, yarn_log_multiplier=1.0) | {"attention.temperature_scale": 0.3},
    ),
    "qwen2": Case("qwen2", "qwen2"),
    "qwen3: yarn": Case(
        "qwen3",
        "qwen3",
        HEAD | yarn(beta_fast=16.0, beta_slow=2.0),
        scaling("yarn", 4.0, 64, yarn_beta_fast=16.0, yarn_beta_slow=2.0),
    ),
    "qwen3: yarn's magnitude": Case(
        "qwen3",
        "qwen3",
        HEAD | yarn(attention_factor=1.5),
        scaling("yarn", 4.0, 64, yarn_attn_factor=1.5, yarn_ext_factor=1.0),
    ),
    "qwen3: yarn times a factor": Case(
        "qwen3",
        "qwen3",
        HEAD | yarn(attention_factor=2 * (0.1 * math.log(4) + 1)),
        scaling("yarn", 4.0, 64, attn_factor=2.0),
    ),
    "qwen3: yarn's log multiplier": Case(
        "qwen3",
        "qwen3",
        HEAD | yarn(mscale=1.0, mscale_all_dim=0.5),
        scaling("yarn", 4.0, 64, yarn_log_multiplier=0.5),
    ),
    "qwen2moe": Case("qwen2moe", "qwen2_moe", SHARED),
    "qwen3moe": Case("qwen3moe", "qwen3_moe", MOE | HEAD | {"norm_topk_prob": True}),
    "qwen3next": Case(
        "qwen3next",
        "qwen3_next",
        SHARED | STATES | PARTIAL,
        STATES_KEYS | {"rope.dimension_count": 8},
    ),
    "gemma": Case("gemma", "gemma", HEAD),
    "gemma2": Case("gemma2", "gemma2", GEMMA2, GEMMA2_KEYS),
    "gemma2: its scale": Case(
        "gemma2",
        "gemma2",
        GEMMA2 | {"query_pre_attn_scalar": 64},
        GEMMA2_KEYS | {"attention.scale": 0.125},
    ),
    "gemma3": Case("gemma3", "gemma3_text", GEMMA3, GEMMA3_KEYS),
    "gemma3: a pattern": Case(
        "gemma3",
        "gemma3_text",
        GEMMA3 | {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]},
        GEMMA3_KEYS | {"attention.sliding_window_pattern": [True, False] * 3 + [False]},
    ),
    "gemma3: a base": Case(
        "gemma3",
        "gemma3_text",
        GEMMA3 | {"rope_parameters": {"sliding_attention": DEFAULT, "full_attention": FULL}},
        GEMMA3_KEYS | {"rope.freq_base_swa": 5e4},
    ),
    "phi3": Case("phi3", "phi3"),
    "phi3: partial, a window": Case(
        "phi3",
        "phi3",
        PARTIAL | {"sliding_window": 16},
        {"rope.dimension_count": 8, "attention.sliding_window": 16},
    ),
    "phi3: longrope": Case(
        "phi3",
        "phi3",
        listed(*LISTS, 1.25) | {"original_max_position_embeddings": 64},
        {"rope.scaling.attn_factor": 1.25, "rope.scaling.original_context_length": 64},
        dict(LONG),
    ),
    "glm4": Case("glm4", "glm4", HEAD | PARTIAL, {"rope.dimension_count": 8}),
    "granite": Case(
        "granite",
        "granite",
        GRANITE | {"attention_multiplier": 0.1},
        GRANITE_KEYS | {"attention.scale": 0.1},
    ),
    "granite: the usual scale": Case(
        "granite", "granite", GRANITE | {"attention_multiplier": 0.25}, GRANITE_KEYS
    ),
    "olmo2": Case("olmo2", "olmo2"),
    "olmo3": Case(
        "olmo2",
        "olmo3",
        {
            "rope_parameters": OLMO3,
            "sliding_window": 16,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        scaling("yarn", 4.0, 64)
        | {"attention.sliding_window": 16, "attention.sliding_window_pattern": [True, False]},
    ),
    "command-r": Case(
        "command-r",
        "cohere",
        {"logit_scale": 0.25, "use_qk_norm": True},
        {"logit_scale": 0.25, "rope.scaling.type": "none"},
    ),
    "cohere2": Case(
        "cohere2",
        "cohere2",
        HEAD | {"logit_scale": 0.25, "sliding_window": 16, "num_hidden_layers": 4},
        {"logit_scale": 0.25, "attention.sliding_window": 16},
    ),
    "gpt-oss": Case(
        "gpt-oss",
        "gpt_oss",
        OSS | yarn(truncate=False, beta_fast=32.0, beta_slow=1.0),
        scaling("yarn", 4.0, 64) | {"attention.sliding_window": 16},
    ),
    "deepseek v2": Case(
        "deepseek2",
        "deepseek_v2",
        LATENT | {"routed_scaling_factor": 1.5} | yarn(mscale=0.7, mscale_all_dim=0.7),
        LATENT_KEYS | scaling("yarn", 4.0, 64, yarn_log_multiplier=0.07),
    ),
    "deepseek v2: heads as they are": Case(
        "deepseek2",
        "deepseek_v2",
        LATENT | {"q_lora_rank": None, "routed_scaling_factor": 1.0},
        LATENT_KEYS
        | {"attention.q_lora_rank": None, "expert_weights_scale": 1.0}
        | {"attention.head_count_kv": 4, "attention.key_length": 24}
        | {"attention.value_length": 16, "attention.key_length_mla": None}
        | {"attention.value_length_mla": None},
        change=latent_in_one,
    ),
    "arcee": Case("arcee", "arcee"),
    "smollm3": Case("smollm3", "smollm3", {"num_hidden_layers": 4}),
    "starcoder2": Case("starcoder2", "starcoder2", {"use_bias": True}),
    "stablelm": Case(
        "stablelm",
        "stablelm",
        PARTIAL | {"use_qkv_bias": True, "use_parallel_residual": True},
        {"rope.dimension_count": 8, "use_parallel_residual": True},
        change=with_one_norm,
    ),
    "nemotron": Case("nemotron", "nemotron", HEAD | PARTIAL, {"rope.dimension_count": 8}),
    "seed_oss": Case("seed_oss", "seed_oss", HEAD | {"attention_bias": True}),
    "olmoe": Case("olmoe", "olmoe", {"num_experts": 4, "num_experts_per_tok": 2}),
    "ernie4_5": Case("ernie4_5", "ernie4_5", HEAD),
    "exaone4": Case(
        "exaone4",
        "exaone4",
        HEAD | {"num_hidden_layers": 4, "sliding_window": 16, "sliding_window_pattern": 4},
        {"attention.sliding_window": 16},
    ),
    "hunyuan": Case("hunyuan-dense", "hunyuan_v1_dense", HEAD),
    "glm4moe": Case(
        "glm4moe",
        "glm4_moe",
        HEAD
        | PARTIAL
        | {"moe_intermediate_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2}
        | {"n_shared_experts": 1, "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1}
        | {"use_qk_norm": True, "attention_bias": True, "routed_scaling_factor": 1.5},
        {"rope.dimension_count": 8, "leading_dense_block_count": 1, "expert_shared_count": 1}
        | {"expert_weights_scale": 1.5, "expert_weights_norm": True, "expert_gating_func": 2}
        | {"nextn_predict_layers": 1, "block_count": 3, "expert_count": 4},
    ),
    "deepseek v3": Case(
        "deepseek2",
        "deepseek_v3",
        LATENT | {"routed_scaling_factor": 1.5, "norm_topk_prob": True, "n_group": 2},
        LATENT_KEYS
        | {"expert_gating_func": 2, "expert_weights_norm": True}
        | {"expert_group_count": 2, "expert_group_used_count": 1},
    ),
}


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


@pytest.mark.parametrize("key", ["attention.layer_norm_rms_epsilon", "attention.head_count"])
def test_a_model_needs_what_only_its_metadata_can_say(key: str, tmp_path: Path) -> None:
    Case("llama", "llama", keys={key: None}).write(tmp_path / "model.gguf")
    with pytest.raises(GqcError, match=f"has no llama.{key}"):
        gqc.load(tmp_path / "model.gguf")


def test_keys_are_those_of_transformers(tmp_path: Path) -> None:
    """transformers reads some of them, for the architectures that it knows."""
    from transformers.integrations import GGUF_CONFIG_MAPPING

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


def split(path: Path, parts: int) -> list[Path]:
    """The tensors of a file, given in turn to parts."""
    reader = gguf.GGUFReader(path)
    paths = [path.with_name(f"m-{i + 1:05}-of-{parts:05}.gguf") for i in range(parts)]
    for i, part in enumerate(paths):
        writer = gguf.GGUFWriter(part, "llama")
        writer.add_uint16("split.no", i)
        writer.add_uint16("split.count", parts)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for name, stored in reader.fields.items() if i == 0 else ():
            if name.startswith("llama."):
                writer.add_key_value(name, stored.contents(), stored.types[0])
        for tensor in reader.tensors[i::parts]:
            writer.add_tensor(tensor.name, tensor.data)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    return paths


def test_parts_of_a_model_are_one(tmp_path: Path) -> None:
    whole = tmp_path / "whole" / "model.gguf"
    whole.parent.mkdir()
    Case("llama", "llama").write(whole)
    paths = split(whole, 3)
    expected = open_checkpoint(whole)
    (whole.parent / "model.gguf").unlink()
    for given in (paths[0], paths[2], whole.parent):
        found = open_checkpoint(given)
        assert found.config == expected.config and sorted(found.names()) == sorted(expected.names())
    assert {entry.path for entry in found.reader.file.entries.values()} == {*paths}  # pyright: ignore[reportAttributeAccessIssue]
    moved = paths[1].rename(paths[1].with_name("x.gguf"))
    with pytest.raises(GqcError, match=r"missing m-00002-of-00003\.gguf; fetch all 3 parts"):
        open_checkpoint(paths[0])
    with pytest.raises(GqcError, match=r"x\.gguf: is one of 3 parts, whose names end in"):
        open_checkpoint(moved)
    moved.rename(paths[1])
    paths[2].write_bytes(paths[1].read_bytes())
    with pytest.raises(GqcError, match=r"00003-of-00003\.gguf: is part 1 of 3"):
        open_checkpoint(paths[0])


def test_a_file_for_images_lies_beside_a_model(tmp_path: Path) -> None:
    Case("llama", "llama").write(tmp_path / "model.gguf")
    write(tmp_path / "mmproj.gguf", "clip", {}, {"v.weight": torch.ones(4)})
    assert open_checkpoint(tmp_path).config["model_type"] == "llama"
    with pytest.raises(GqcError, match=r"general\.architecture is 'clip', expected one of llama"):
        open_checkpoint(tmp_path / "mmproj.gguf")


@pytest.mark.parametrize("alignment", [8, 64])
def test_tensors_lie_as_the_file_says(alignment: int, tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    writer.add_custom_alignment(alignment)
    writer.add_head_count(2)
    values = torch.arange(7.0)
    writer.add_tensor("blk.0.attn_norm.weight", values.numpy())
    writer.add_tensor("blk.0.ffn_norm.weight", values.numpy() + 1)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    for i, name in enumerate(("input", "post_attention")):
        found = checkpoint.read(f"model.layers.0.{name}_layernorm.weight")
        assert torch.equal(found, values + i)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("kind", ["big-endian", "no tensors"])
def test_files_that_are_no_models_say_why(kind: str, tmp_path: Path) -> None:
    endianess = gguf.GGUFEndian.BIG if kind == "big-endian" else gguf.GGUFEndian.LITTLE
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama", endianess=endianess)
    writer.add_head_count(2)
    if kind == "big-endian":
        writer.add_tensor("blk.0.attn_norm.weight", torch.arange(7.0).numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if kind == "big-endian":
        writer.write_tensors_to_file()
    writer.close()
    told = {"big-endian": "convert it with gguf-convert-endian", "no tensors": "tokenizer alone"}
    with pytest.raises(GqcError, match=told[kind]):
        open_checkpoint(tmp_path / "model.gguf")
