"""Model architectures, small and with random weights, and inputs of any size for each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.export import Dim

Inputs = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """How to build a model, its inputs for a batch and a length, and whether it generates tokens.

    package: what it needs besides transformers. dynamic_shapes: as of `gqc.compile`.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int, int], Inputs]
    generates: bool = False
    package: str = ""
    dynamic_shapes: Any = None


ARCHITECTURES: dict[str, Architecture] = {}

VOCABULARY = 96
IDS = {"bos_token_id": 1, "eos_token_id": 95, "pad_token_id": 0}
SMALL = {"vocab_size": VOCABULARY, "hidden_size": 64, "num_hidden_layers": 2}
ENCODER = {
    **SMALL,
    **IDS,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 128,
}
DECODER = {**ENCODER, "num_key_value_heads": 2}
HEADS = {**DECODER, "head_dim": 16}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
GROUPED = {"n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
IMAGE = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 8,
}
OWN = {"vocab_size": VOCABULARY, **IDS}
"""Sizes are called otherwise by such configs."""


def generator(batch: int, length: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * batch + length)


def random(batch: int, length: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=generator(batch, length))


def tokens(batch: int, length: int) -> Inputs:
    """Tokens, the first two of which are padding where there are several texts."""
    ids = torch.randint(3, 90, (batch, length), generator=generator(batch, length))
    mask = torch.ones_like(ids)
    if batch > 1:
        ids[0, :2], mask[0, :2] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def pixels(batch: int, length: int) -> Inputs:
    return {"pixel_values": random(batch, length, batch, 3, 32, 32)}


def text_to_text(batch: int, length: int) -> Inputs:
    return {
        **tokens(batch, length),
        "decoder_input_ids": tokens(1, length)["input_ids"].repeat(batch, 1),
    }


def speech_to_text(batch: int, length: int) -> Inputs:
    decoder = tokens(1, length)["input_ids"].repeat(batch, 1)
    return {"input_features": random(batch, length, batch, 16, 40), "decoder_input_ids": decoder}


def waves(batch: int, length: int) -> Inputs:
    return {"input_values": random(batch, length, batch, 40 * length)}


def images_with_text(batch: int, length: int) -> Inputs:
    """One image of 16 tokens (94) before each text."""
    texts = tokens(1, length)["input_ids"].repeat(batch, 1)
    ids = torch.cat([texts[:, :1], torch.full((batch, 16), 94), texts], 1)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), **pixels(batch, length)}


def texts_and_images(batch: int, length: int) -> Inputs:
    given = tokens(batch, length)
    given["input_ids"][:, -1] = 95
    return {**given, **pixels(batch, length)}


def sequences(batch: int, length: int) -> Inputs:
    return {"src": random(batch, length, batch, length, 64)}


def pairs(batch: int, length: int) -> Inputs:
    return {**sequences(batch, length), "tgt": random(batch, length, batch, length + 2, 64)}


def randomized(model: nn.Module) -> nn.Module:
    """Weights whose outputs vary enough to compare, from one seed; in evaluation mode."""
    source = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=source)
            if parameter.ndim >= 2:
                parameter.copy_(noise * 1.2 * max(parameter.shape[-1], 8) ** -0.5)
            elif name.endswith("bias"):
                parameter.copy_(0.1 * noise)
    return model.eval()


def add(
    name: str,
    kind: str,
    config: str,
    inputs: Callable[[int, int], Inputs],
    options: dict[str, Any],
    generates: bool = False,
    dynamic_shapes: Any = None,
) -> None:
    """An architecture of transformers: its class, or `AutoModel…`, and its config."""

    def build() -> nn.Module:
        made = getattr(transformers, config)(**options)
        cls = getattr(transformers, kind)
        return randomized(cls.from_config(made) if kind.startswith("Auto") else cls(made))

    ARCHITECTURES[name] = Architecture(build, inputs, generates, dynamic_shapes=dynamic_shapes)


def causal(name: str, config: str, **options: Any) -> None:
    add(name, "AutoModelForCausalLM", config, tokens, options, generates=True)


causal("llama", "LlamaConfig", **HEADS)
causal("qwen2", "Qwen2Config", **DECODER)
causal("qwen3", "Qwen3Config", **HEADS)
causal("qwen3_moe", "Qwen3MoeConfig", **HEADS, **EXPERTS, num_experts=4)
causal(
    "qwen3_next",
    "Qwen3NextConfig",
    **{**HEADS, **EXPERTS, "num_hidden_layers": 4},
    num_experts=4,
    shared_expert_intermediate_size=32,
    linear_num_value_heads=4,
    linear_num_key_heads=2,
    linear_key_head_dim=16,
    linear_value_head_dim=16,
)
causal("gemma2", "Gemma2Config", **HEADS, sliding_window=8)
causal("gemma3", "Gemma3TextConfig", **HEADS, sliding_window=8)
causal("phi3", "Phi3Config", **DECODER)
causal("mistral", "MistralConfig", **HEADS, sliding_window=8)
causal("mixtral", "MixtralConfig", **HEADS, num_local_experts=4)
causal("gpt_oss", "GptOssConfig", **HEADS, num_local_experts=4, rope_parameters=None)
causal(
    "deepseek_v3",
    "DeepseekV3Config",
    **{**DECODER, **EXPERTS, **GROUPED, "num_key_value_heads": 4},
    n_routed_experts=4,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
)
causal("glm4_moe", "Glm4MoeConfig", **HEADS, **EXPERTS, **GROUPED, n_routed_experts=4)
causal("granite", "GraniteConfig", **DECODER)
causal("granite_moe", "GraniteMoeConfig", **DECODER, num_local_experts=4, num_experts_per_tok=2)
causal("olmo2", "Olmo2Config", **DECODER)
causal("cohere2", "Cohere2Config", **HEADS, sliding_window=8)
causal(
    "falcon",
    "FalconConfig",
    **SMALL,
    **IDS,
    num_attention_heads=4,
    new_decoder_architecture=False,
    multi_query=True,
)
causal("gpt_neox", "GPTNeoXConfig", **ENCODER)
causal("gpt2", "GPT2Config", **OWN, n_embd=64, n_layer=2, n_head=4, n_positions=128)
causal("bloom", "BloomConfig", **OWN, hidden_size=64, n_layer=2, n_head=4)
causal("mpt", "MptConfig", **OWN, d_model=64, n_heads=4, n_layers=2, max_seq_len=128)
causal(
    "opt",
    "OPTConfig",
    **SMALL,
    **IDS,
    ffn_dim=128,
    num_attention_heads=4,
    max_position_embeddings=128,
    word_embed_proj_dim=32,
)
causal("gemma", "GemmaConfig", **HEADS)
causal("phi", "PhiConfig", **DECODER)
causal("starcoder2", "Starcoder2Config", **DECODER, sliding_window=8)
causal("stablelm", "StableLmConfig", **DECODER)
causal("smollm3", "SmolLM3Config", **DECODER)
causal("nemotron", "NemotronConfig", **DECODER)
causal("olmoe", "OlmoeConfig", **DECODER, num_experts=4, num_experts_per_tok=2)
causal("minimax", "MiniMaxConfig", **HEADS, num_local_experts=4, num_experts_per_tok=2)
causal(
    "deepseek_v2",
    "DeepseekV2Config",
    **{**DECODER, **EXPERTS, "num_key_value_heads": 4},
    n_group=2,
    topk_group=1,
    first_k_dense_replace=1,
    n_routed_experts=4,
    n_shared_experts=1,
    q_lora_rank=32,
    kv_lora_rank=32,
    qk_rope_head_dim=16,
    qk_nope_head_dim=16,
    v_head_dim=16,
)
causal(
    "falcon_h1",
    "FalconH1Config",
    **HEADS,
    mamba_d_ssm=128,
    mamba_n_heads=8,
    mamba_d_head=16,
    mamba_n_groups=1,
    mamba_d_state=16,
)
causal(
    "recurrent_gemma",
    "RecurrentGemmaConfig",
    **{**DECODER, "num_hidden_layers": 3},
    lru_width=64,
    attention_window_size=16,
)
causal("mamba", "MambaConfig", **SMALL, **IDS, state_size=16, time_step_rank=32)
causal(
    "mamba2",
    "Mamba2Config",
    **SMALL,
    **IDS,
    num_heads=8,
    head_dim=16,
    state_size=16,
    n_groups=2,
    expand=2,
    chunk_size=8,
)
causal(
    "jamba",
    "JambaConfig",
    **DECODER,
    num_experts=4,
    num_experts_per_tok=2,
    attn_layer_period=2,
    attn_layer_offset=1,
    expert_layer_period=2,
    expert_layer_offset=1,
    mamba_d_state=16,
    mamba_dt_rank=32,
    use_mamba_kernels=False,
)
add(
    "t5",
    "T5ForConditionalGeneration",
    "T5Config",
    text_to_text,
    {
        "vocab_size": VOCABULARY,
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 128,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
        "eos_token_id": 95,
        "pad_token_id": 0,
    },
    generates=True,
)
LAYERS = {
    "d_model": 64,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "decoder_start_token_id": 1,
}
add(
    "bart",
    "BartForConditionalGeneration",
    "BartConfig",
    text_to_text,
    {**OWN, **LAYERS, "max_position_embeddings": 128, "forced_eos_token_id": None},
    generates=True,
)
add(
    "whisper",
    "WhisperForConditionalGeneration",
    "WhisperConfig",
    speech_to_text,
    {
        **OWN,
        **LAYERS,
        "num_mel_bins": 16,
        "max_source_positions": 20,
        "max_target_positions": 64,
        "begin_suppress_tokens": None,
        "suppress_tokens": None,
    },
)
add("bert", "BertForMaskedLM", "BertConfig", tokens, ENCODER)
add(
    "modernbert",
    "ModernBertForMaskedLM",
    "ModernBertConfig",
    tokens,
    {**ENCODER, "local_attention": 8, "cls_token_id": 1, "sep_token_id": 2},
)
RELATIVE = {**ENCODER, "relative_attention": True, "pos_att_type": ["p2c", "c2p"]}
add(
    "deberta_v2",
    "DebertaV2ForMaskedLM",
    "DebertaV2Config",
    tokens,
    {**RELATIVE, "position_buckets": 16, "share_att_key": True, "type_vocab_size": 0},
)
add(
    "deberta",
    "DebertaForMaskedLM",
    "DebertaConfig",
    tokens,
    {**RELATIVE, "max_relative_positions": 32, "type_vocab_size": 0},
)
add("vit", "ViTForImageClassification", "ViTConfig", pixels, {**IMAGE, "num_labels": 32})
add("dinov2", "Dinov2Model", "Dinov2Config", pixels, {**IMAGE, "mlp_ratio": 2})
add("siglip_vision", "SiglipVisionModel", "SiglipVisionConfig", pixels, IMAGE)
add(
    "clip",
    "CLIPModel",
    "CLIPConfig",
    texts_and_images,
    {
        "text_config": {**ENCODER, "projection_dim": 32},
        "vision_config": {**IMAGE, "projection_dim": 32},
        "projection_dim": 32,
    },
)
add(
    "llava",
    "LlavaForConditionalGeneration",
    "LlavaConfig",
    images_with_text,
    {
        "vision_config": {**IMAGE, "model_type": "clip_vision_model", "projection_dim": 32},
        "text_config": {**HEADS, "model_type": "llama"},
        "image_token_index": 94,
        "image_seq_length": 16,
        "vision_feature_layer": -1,
    },
    generates=True,
)
SPEECH = {
    **ENCODER,
    "conv_dim": (32, 32),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
}
FREE_LENGTH = {"input_values": {0: Dim.AUTO, 1: Dim.AUTO}}
add(
    "wav2vec2",
    "Wav2Vec2ForCTC",
    "Wav2Vec2Config",
    waves,
    SPEECH,
    dynamic_shapes=FREE_LENGTH,
)
add("wavlm", "WavLMForCTC", "WavLMConfig", waves, SPEECH, dynamic_shapes=FREE_LENGTH)
add(
    "swin",
    "SwinForImageClassification",
    "SwinConfig",
    pixels,
    {"image_size": 32, "patch_size": 2, "embed_dim": 32, "depths": (2, 2), "num_heads": (2, 4)},
)
SWITCH = {**OWN, "d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}
add("mt5", "MT5ForConditionalGeneration", "MT5Config", text_to_text, SWITCH, generates=True)
add(
    "switch",
    "SwitchTransformersForConditionalGeneration",
    "SwitchTransformersConfig",
    text_to_text,
    {**SWITCH, "num_experts": 4, "num_decoder_layers": 2},
    generates=True,
)


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(64, 4, 128, batch_first=True, activation="gelu")
    return randomized(nn.TransformerEncoder(layer, 2))


def transformer() -> nn.Module:
    return randomized(nn.Transformer(64, 4, 2, 2, 128, batch_first=True))


ARCHITECTURES["nn.TransformerEncoder"] = Architecture(encoder, sequences)
ARCHITECTURES["nn.Transformer"] = Architecture(transformer, pairs)


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel  # pyright: ignore[reportMissingImports]

    return randomized(
        FluxTransformer2DModel(
            patch_size=1,
            in_channels=32,
            num_layers=1,
            num_single_layers=1,
            attention_head_dim=16,
            num_attention_heads=4,
            joint_attention_dim=64,
            pooled_projection_dim=32,
            axes_dims_rope=(4, 4, 8),
        )
    )


def latents(batch: int, length: int) -> Inputs:
    return {
        "hidden_states": random(batch, length, batch, 16, 32),
        "encoder_hidden_states": random(batch, length, batch, length, 64),
        "pooled_projections": random(batch, length, batch, 32),
        "timestep": torch.rand(batch, generator=generator(batch, length)),
        "img_ids": torch.zeros(16, 3),
        "txt_ids": torch.zeros(length, 3),
        "return_dict": False,
    }


ARCHITECTURES["flux"] = Architecture(flux, latents, package="diffusers")
