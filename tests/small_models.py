"""Models of transformers, small enough for tests; more options are of their configs."""

from __future__ import annotations

from typing import Any

import transformers


def llama(**options: Any) -> Any:
    """Two blocks, groups of two query heads."""
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 128}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {**sizes, **heads, "bos_token_id": 1, "eos_token_id": 2, **options}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()


def gpt2(**options: Any) -> Any:
    """Two blocks of `Conv1D`."""
    sizes = {"vocab_size": 96, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    config = {**sizes, "bos_token_id": 1, "eos_token_id": 2, **options}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**config)).eval()


EXPERTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mixtral": (transformers.MixtralConfig, {"num_local_experts": 4}),
    "qwen3_moe": (
        transformers.Qwen3MoeConfig,
        {"num_experts": 4, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "gpt_oss": (transformers.GptOssConfig, {"num_local_experts": 4, "rope_parameters": None}),
}
"""Kinds of experts: rows of gate before those of up, or in turn, as [K, N] and with biases."""


def experts(kind: str, **options: Any) -> Any:
    """Two blocks of four experts each, of which a token is sent to two."""
    make, own = EXPERTS[kind]
    sizes = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 64, "head_dim": 16}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = make(**{**sizes, **heads, "num_experts_per_tok": 2, **own, **options})
    return transformers.AutoModelForCausalLM.from_config(config).eval()
