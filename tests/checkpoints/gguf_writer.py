"""Models of transformers as llama.cpp's converter writes them, for what reads GGUF.

Names come from the gguf package; what the converter changes in tensors is written here once more.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

Tensors = Iterator[tuple[str, torch.Tensor]]

SIZES = dict(vocab_size=96, hidden_size=64, intermediate_size=64, num_hidden_layers=2)
HEADS = dict(num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512)
TOKENS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
DEFAULT = dict(rope_type="default", rope_theta=5e4)


def tiny(model_type: str, **more: Any) -> Any:
    """A model of transformers with random weights, in float32."""
    settings = SIZES | HEADS | TOKENS | {"rope_parameters": DEFAULT} | more
    config = transformers.AutoConfig.for_model(model_type, **settings)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    for name, tensor in model.state_dict().items():
        if "norm" in name:
            tensor.add_(torch.randn(tensor.shape) * 0.1)
        elif "A_log" not in name:
            tensor.normal_(0, 0.12)
    return model


COMMON = {
    "block_count": "num_hidden_layers",
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "attention.layer_norm_epsilon": "layer_norm_eps norm_epsilon norm_eps",
    "attention.key_length": "head_dim",
    "attention.value_length": "head_dim",
    "expert_count": "num_experts",
    "expert_used_count": "num_experts_per_tok",
    "expert_feed_forward_length": "moe_intermediate_size",
    "expert_shared_feed_forward_length": "shared_expert_intermediate_size",
}


def keys_of(config: Any) -> dict[str, Any]:
    """The metadata that all architectures have alike."""
    found = {
        key: next((getattr(config, n) for n in names.split() if hasattr(config, n)), None)
        for key, names in COMMON.items()
    }
    rope = config.rope_parameters.get("full_attention", config.rope_parameters)
    return {k: v for k, v in found.items() if v is not None} | {
        "rope.freq_base": rope["rope_theta"]
    }


def pairs(t: torch.Tensor, heads: int) -> torch.Tensor:
    """Rows in halves that rotate together, in pairs."""
    return t.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)


def tensors_of(model: Any, architecture: str) -> Tensors:
    """The tensors of a file, by the file's names."""
    number = next(n for n, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(number, model.config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        for changed, t in converted(name, tensor, model.config, architecture):
            found = names.get_name(changed, (".weight", ".bias"))
            yield found or changed, t


IN_PAIRS = ("llama", "granite", "mistral3", "arcee", "smollm3")
"""Architectures whose rows of q and k are in pairs."""
ABOUT_ONE = ("gemma", "gemma2", "gemma3", "qwen3next", "nemotron")
"""Those whose norms' weights are about one in files, and about zero in models."""


def converted(name: str, t: torch.Tensor, config: Any, architecture: str) -> Tensors:
    """What llama.cpp's converter makes of a parameter, under names that it looks up."""
    module = name.rpartition(".")[0].rpartition(".")[2]
    stem = name.rpartition(".")[0]
    layer = name.split(".")[2] if name.startswith("model.layers.") else ""
    if architecture in IN_PAIRS and module in ("q_proj", "k_proj"):
        heads = config.num_attention_heads if module[0] == "q" else config.num_key_value_heads
        yield name, pairs(t, heads)
    elif architecture in ABOUT_ONE and name.endswith("norm.weight"):
        yield name, t if "linear_attn.norm" in name else t + 1
    elif name.endswith("gate_up_proj") and architecture == "gpt-oss":
        for i, half in enumerate(("gate", "up")):
            yield f"blk.{layer}.ffn_{half}_exps.weight", t.transpose(1, 2)[:, i::2]
    elif name.endswith("gate_up_proj_bias"):
        for i, half in enumerate(("gate", "up")):
            yield f"blk.{layer}.ffn_{half}_exps.bias", t[:, i::2]
    elif name.endswith("experts.gate_up_proj"):
        for half, part in zip(("gate", "up"), t.chunk(2, 1), strict=True):
            yield f"blk.{layer}.ffn_{half}_exps.weight", part
    elif name.endswith("experts.down_proj"):
        turned = t.transpose(1, 2) if architecture == "gpt-oss" else t
        yield f"blk.{layer}.ffn_down_exps.weight", turned
    elif name.endswith("experts.down_proj_bias"):
        yield f"blk.{layer}.ffn_down_exps.bias", t
    elif name.endswith("sinks"):
        yield f"{name}.weight", t
    elif name.endswith("e_score_correction_bias"):
        yield f"blk.{layer}.exp_probs_b.bias", t
    elif name.endswith("kv_b_proj.weight"):
        heads, nope = config.num_attention_heads, config.qk_nope_head_dim
        k, v = t.view(heads, nope + config.v_head_dim, -1).split([nope, config.v_head_dim], 1)
        yield f"{stem[:-9]}k_b_proj.weight", k.transpose(1, 2)
        yield f"{stem[:-9]}v_b_proj.weight", v
    elif name.endswith("shared_expert_gate.weight"):
        yield name, t.flatten()
    elif name.endswith("A_log"):
        yield f"blk.{layer}.ssm_a", -torch.exp(t)
    elif name.endswith("dt_bias"):
        yield f"blk.{layer}.ssm_dt.bias", t
    elif name.endswith("conv1d.weight"):
        yield name, t.squeeze(1)
    elif name.endswith("in_proj_qkvz.weight"):
        heads, key = config.linear_num_key_heads, config.linear_key_head_dim
        value = config.linear_num_value_heads // heads * config.linear_value_head_dim
        q, k, v, z = t.unflatten(0, (heads, -1)).split([key, key, value, value], 1)
        states = torch.cat([each.flatten(0, 1) for each in (q, k, v)])
        yield f"blk.{layer}.attn_qkv.weight", states
        yield f"blk.{layer}.attn_gate.weight", z.flatten(0, 1)
    else:
        yield name, t


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kinds = {bool: "bool", int: "uint32", float: "float32", str: "string"}
    if isinstance(value, list):
        writer.add_array(key, value)
    else:
        getattr(writer, f"add_{kinds[type(value)]}")(key, value)


def write(
    path: Path,
    architecture: str,
    keys: dict[str, Any],
    tensors: dict[str, torch.Tensor],
    types: dict[str, gguf.GGMLQuantizationType] | None = None,
) -> None:
    """A file. keys: after the architecture, or with a namespace of their own after a colon."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        add_key(writer, key[1:] if key.startswith(":") else f"{architecture}.{key}", value)
    for name, tensor in tensors.items():
        values = np.ascontiguousarray(tensor.detach().float().numpy())
        type = (types or {}).get(name)
        if type is None:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, type), raw_dtype=type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
