"""Models of transformers, and what their GGUF files say of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from checkpoints.gguf_writer import DEFAULT, keys_of, tensors_of, tiny, write

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
LINEAR8 = scaling("linear", 8.0)
GEMMA3_KEYS = LINEAR8 | {"attention.sliding_window": 16}
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
SECTIONS = {"rope.dimension_sections": [2, 3, 3, 0]}
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
            **{"attention.sliding_window": 512, ":general.quantization_version": 2},
            **{"pooling_type": 3, "rope.scaling.finetuned": False, "vocab_size": 32000},
            **{"attention.key_length_swa": 16, "rope.dimension_count_swa": 16},
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
    "llama: qkv in one, with biases": Case(
        "llama", "llama", {"attention_bias": True}, change=qkv_in_one
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
    "gemma2: scores as they are": Case(
        "gemma2",
        "gemma2",
        GEMMA2 | {"attn_logit_softcapping": None, "final_logit_softcapping": None},
        GEMMA2_KEYS | {"attn_logit_softcapping": 0.0, "final_logit_softcapping": 0.0},
    ),
    "gemma3": Case("gemma3", "gemma3_text", GEMMA3, GEMMA3_KEYS),
    "gemma3: a pattern": Case(
        "gemma3",
        "gemma3_text",
        GEMMA3 | {"layer_types": ["sliding_attention", "full_attention"] * 3 + ["full_attention"]},
        GEMMA3_KEYS | {"attention.sliding_window_pattern": [True, False] * 3 + [False]},
    ),
    "gemma3: no window": Case(
        "gemma3", "gemma3_text", GEMMA3 | {"layer_types": ["full_attention"] * 7}, LINEAR8
    ),
    "exaone4: no window": Case(
        "exaone4", "exaone4", HEAD | {"sliding_window": None, "layer_types": ["full_attention"] * 2}
    ),
    "gemma3: a base": Case(
        "gemma3",
        "gemma3_text",
        GEMMA3 | {"rope_parameters": {"sliding_attention": DEFAULT, "full_attention": FULL}},
        GEMMA3_KEYS | {"rope.freq_base_swa": 5e4},
    ),
    "qwen2vl": Case("qwen2vl", "qwen2", keys=SECTIONS),
    "qwen3vl": Case("qwen3vl", "qwen3", HEAD, SECTIONS | {"n_deepstack_layers": 3}),
    "qwen3vlmoe": Case("qwen3vlmoe", "qwen3_moe", MOE | HEAD | {"norm_topk_prob": True}, SECTIONS),
    "phi2": Case("phi2", "phi", PARTIAL, {"rope.dimension_count": 8}),
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
        | {"expert_weights_scale": 1.5, "expert_weights_norm": True}
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
