"""Routers of experts are told by names and shapes."""

from __future__ import annotations

import pytest
import torch
import transformers
from torch import nn

from gqc.frontend.linears import copy_shared
from gqc.frontend.routers import routers

SIZES = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 2}
KINDS = {
    "Qwen3MoeConfig": ({"num_experts": 4, "moe_intermediate_size": 32}, {"mlp.gate"}),
    "Qwen2MoeConfig": (
        {"num_experts": 4, "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32},
        {"mlp.gate", "mlp.shared_expert_gate"},
    ),
    "MixtralConfig": ({"num_local_experts": 4}, {"block_sparse_moe.gate", "mlp.gate"}),
    "GptOssConfig": ({"num_local_experts": 4, "rope_parameters": None}, {"mlp.router"}),
    "GraniteMoeConfig": ({"num_local_experts": 4}, {"block_sparse_moe.router"}),
    "OlmoeConfig": ({"num_experts": 4}, {"mlp.gate"}),
    "Llama4TextConfig": (
        {"num_local_experts": 4, "intermediate_size_mlp": 48},
        {"feed_forward.router"},
    ),
    "LlamaConfig": ({}, set()),
}


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "apart"])
@pytest.mark.parametrize("kind", KINDS)
def test_routers_of_models(kind: str, stacked: bool) -> None:
    own, expected = KINDS[kind]
    config = getattr(transformers, kind)(**{**SIZES, **HEADS, **own})
    with torch.device("meta"):
        model: nn.Module = transformers.AutoModelForCausalLM.from_config(config)
    model = model if stacked else copy_shared(model)
    found = routers({name: p.shape for name, p in model.named_parameters()})
    prefix = "model.layers.0."
    assert bool(found) == bool(expected)
    assert {n.removeprefix(prefix).removesuffix(".weight") for n in found} <= expected


def test_what_is_no_router() -> None:
    """A head with a row for each block, a gate without experts, a layer beside a convolution."""
    shapes = {
        "layers.0.proj.weight": (64, 64),
        "layers.1.proj.weight": (64, 64),
        "head.weight": (2, 64),
        "mixer.conv1d.weight": (8, 1, 4),
        "mixer.dt_proj.weight": (8, 4),
        "mixer.gate.weight": (8, 4),
        "mlp.gate_proj.weight": (16, 64),
        "moe.experts.0.gate_proj.weight": (4, 64),
        "moe.experts.1.gate_proj.weight": (4, 64),
        "moe.shared_experts.gate_proj.weight": (2, 64),
        "moe.gate.bias": (2,),
        "moe.norm.weight": (2,),
    }
    assert routers(shapes) == set()
    assert routers({**shapes, "moe.choose.weight": (2, 64)}) == {"moe.choose.weight"}
    named = {**shapes, "moe.down.weight": (2, 64), "moe.router.layer.weight": (2, 64)}
    assert routers(named) == {"moe.router.layer.weight"}
