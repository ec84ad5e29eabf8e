"""GGUF's metadata as config.json would say it.

Every key of the architecture is read, or known to change nothing, or refused: what a key means that
nobody read would be missing from the model in silence. Keys of other namespaces (`general.`,
`tokenizer.`, …) describe the file, its tokenizer and its origin; no reader takes the model from
them, except for those in `KINDS`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from gqc.checkpoints.gguf_blocks import DENSE
from gqc.checkpoints.gguf_file import GgufFile, Texts
from gqc.checkpoints.gguf_rope import rope_parameters
from gqc.errors import GqcError

Config = dict[str, Any]

KEYS: dict[str, tuple[str, ...]] = {
    "embedding_length": ("hidden_size",),
    "feed_forward_length": ("intermediate_size",),
    "context_length": ("max_position_embeddings",),
    "attention.head_count": ("num_attention_heads",),
    "attention.head_count_kv": ("num_key_value_heads",),
    "attention.layer_norm_rms_epsilon": ("rms_norm_eps",),
    "attention.layer_norm_epsilon": ("layer_norm_eps", "norm_epsilon", "norm_eps"),
    "attention.q_lora_rank": ("q_lora_rank",),
    "attention.kv_lora_rank": ("kv_lora_rank",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "residual_scale": ("residual_multiplier",),
    "embedding_scale": ("embedding_multiplier",),
    "leading_dense_block_count": ("first_k_dense_replace",),
    "expert_count": ("num_local_experts", "num_experts", "n_routed_experts"),
    "expert_used_count": ("num_experts_per_tok",),
    "expert_feed_forward_length": ("moe_intermediate_size",),
    "expert_shared_feed_forward_length": ("shared_expert_intermediate_size",),
    "expert_shared_count": ("n_shared_experts",),
    "expert_group_count": ("n_group",),
    "expert_group_used_count": ("topk_group",),
    "expert_weights_scale": ("routed_scaling_factor",),
    "expert_weights_norm": ("norm_topk_prob",),
    "use_parallel_residual": ("use_parallel_residual",),
    "ssm.conv_kernel": ("linear_conv_kernel_dim",),
    "ssm.state_size": ("linear_key_head_dim",),
    "ssm.group_count": ("linear_num_key_heads",),
    "ssm.time_step_rank": ("linear_num_value_heads",),
}
"""Keys of config.json by those of the metadata, after the architecture; the first counts that the
model's config has."""

NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.scale": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_feed_forward_length": (0,),
    "expert_gating_func": (0,),
    "expert_group_count": (0, 1),
    "expert_group_used_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "expert_used_count": (0,),
    "expert_weights_norm": (False,),
    "expert_weights_scale": (0, 1),
    "final_logit_softcapping": (0,),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "n_deepstack_layers": (0,),
    "pooling_type": (0, 1, 2, 3),  # what embeddings would be made of; logits are not
    "residual_scale": (0, 1),
    "rope.dimension_sections": (0,),
    "rope.scaling.finetuned": (True, False),
    "router_logit_softcapping": (0,),
    "tensor_data_layout": ("Meta AI original pth",),  # rows of q and k in pairs, as all files
    "use_parallel_residual": (False,),
}
"""Values that change nothing, of keys that the model's config does not have."""

ABSENT_IF_ZERO = ("attn_logit_softcapping", "final_logit_softcapping")
"""Keys of config.json that say None where a file says 0."""

GREATEST = 1 << 31
"""Hyperparameters are less."""

EPSILONS = ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
"""A model has norms of one kind; files may have both keys."""

REQUIRED = (("embedding_length",), ("attention.head_count",), EPSILONS)
"""Keys of which a whole model has one each, and which no shape of a tensor tells."""

MOST_LAYERS = 1 << 10

REMEDY = "load the checkpoint of safetensors that the file was made of"
"""What can be done about a file whose model is not known to the letter."""

KINDS = {
    "general.type": ("model",),
    "adapter.type": (),
    "clip.has_vision_encoder": (),
    "clip.has_audio_encoder": (),
}
"""Keys of other namespaces that say what a file is of, and the values that they may have."""

QUANTIZATION, BLOCKS = "general.quantization_version", 2
"""The key of the version of blocks, and the one that is read."""

FLAGS: dict[str, tuple[str, ...]] = {
    "attention_bias": tuple(f"attn_{part}.bias" for part in ("q", "k", "v", "output", "qkv")),
    "attention_out_bias": ("attn_output.bias",),
    "use_qkv_bias": ("attn_q.bias", "attn_k.bias", "attn_v.bias"),
    "use_bias": ("attn_q.bias", "attn_output.bias", "ffn_up.bias", "ffn_down.bias"),
    "mlp_bias": ("ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
    "use_qk_norm": ("attn_q_norm.weight", "attn_k_norm.weight"),
}
"""Keys of config.json that are true where blocks have one of these tensors."""


class Hyperparameters:
    """The keys of a file's architecture, which notes those that were read."""

    def __init__(self, file: GgufFile, prefix: str):
        self.file, self.prefix = file, prefix
        self.read: set[str] = set()

    def error(self, key: str, text: str) -> GqcError:
        return GqcError(f"{self.file.path}: {self.prefix}.{key} {text}")

    def get(self, key: str, default: Any = None) -> Any:
        """A value as it is stored."""
        self.read.add(key)
        return self.file.metadata.get(f"{self.prefix}.{key}", default)

    def one(self, key: str, default: Any = None) -> Any:
        """A value that is one for all layers. Raises GqcError if it differs between them."""
        value = self.get(key, default)
        if isinstance(value, Texts) or value == ():
            raise self.error(key, f"is {value}, expected a number")
        if isinstance(value, tuple):
            if len(set(value)) > 1:
                raise self.error(
                    key, f"is {shortened(value)}: it differs by layer, one is expected"
                )
            return value[0]
        return value

    def number(self, key: str, default: float) -> float:
        """The same, a finite number that is not negative. Raises GqcError on another value."""
        value = self.one(key, default)
        if isinstance(value, str) or not math.isfinite(value) or not 0 <= value < GREATEST:
            raise self.error(key, f"is {value!r}, expected a number from 0 to {GREATEST}")
        return value

    def size(self, key: str, default: int) -> int:
        """The same, an integer of at least 1."""
        value = self.number(key, default)
        if int(value) != value or value < 1:
            raise self.error(key, f"is {value!r}, expected an integer of at least 1")
        return int(value)

    @property
    def unread(self) -> list[str]:
        """Keys that nothing has read, the architecture before them."""
        start = f"{self.prefix}."
        keys = [key for key in self.file.metadata if key.startswith(start)]
        return [key for key in keys if key.removeprefix(start) not in self.read]


def shortened(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 100 else f"{text[:100]} …"


@dataclass(frozen=True)
class Architecture:
    """A model of transformers, and how a GGUF file differs from it.

    when: whether it is the one, of several that have a name in common. rotary: rows of q and k are
    in pairs that rotate together, and not in halves. norms: what was added to the weights of norms.
    partial: whether the model can rotate a part of each head. pattern: of so many layers the last
    attends to everything, the others to a window; 1 where all attend to a window; 0 where none.
    window: where the file does not say. apart: whether layers with a window rotate by frequencies
    of their own. local_base: of these, where the file does not say. temperature: whether queries
    are scaled by their positions. interleaved: whether rows of experts' gates and others take
    turns, in stacks that are transposed. yarn: what the model's YaRN has besides. log_unit: of the
    file's `yarn_log_multiplier`. gating: numbers of the functions that the model's router may be.
    keys: as `KEYS`. required: keys that a whole model has beside `REQUIRED`. implied: what
    config.json says and the metadata does not. more: what depends on more than one key.
    """

    model_type: str
    when: Callable[[GgufFile, str], bool] = lambda file, prefix: True
    rotary: bool = False
    norms: int = 0
    partial: bool = False
    pattern: int = 0
    window: int = 0
    apart: bool = False
    local_base: float = 0.0
    temperature: bool = False
    interleaved: bool = False
    yarn: Config = field(default_factory=dict)
    log_unit: float = 1.0
    gating: tuple[int, ...] = (0, 1)
    keys: dict[str, tuple[str, ...]] = field(default_factory=dict)
    required: tuple[str, ...] = ()
    implied: Config = field(default_factory=dict)
    more: Callable[[Hyperparameters, Config], Config] = lambda known, config: {}


def config_of(file: GgufFile, prefix: str, architecture: Architecture) -> Config:
    """The config of the dense model, with its `model_type`.

    Raises GqcError that names keys that the model cannot follow, that are unknown, or missing.
    """
    check_kind(file)
    known = Hyperparameters(file, prefix)
    possible = default_config(architecture.model_type)
    config: Config = {"model_type": architecture.model_type, **architecture.implied}
    config |= sizes(known)
    config |= numbers(known, KEYS | architecture.keys, possible)
    config |= flags(file, possible)
    config |= tokens(known, config)
    config |= windows(known, architecture, config)
    config |= architecture.more(known, config)
    config["rope_parameters"] = rope_parameters(known, architecture, config)
    config["tie_word_embeddings"] = "output.weight" not in file.entries
    check_gating(known, architecture)
    check_unread(known, config, architecture)
    return config


def numbers(known: Hyperparameters, keys: dict[str, tuple[str, ...]], possible: Any) -> Config:
    """What keys say that are one number each. Those that the model's config lacks stay unread."""
    config: Config = {}
    for key, names in keys.items():
        if known.get(key) is None:
            continue
        value = known.number(key, 0)
        name = next((name for name in names if hasattr(possible, name)), None)
        if name is None:
            known.read.discard(key)
        elif value or isinstance(value, bool) or 0 not in NEUTRAL.get(key, ()):
            config[name] = value
        elif name in ABSENT_IF_ZERO:
            config[name] = None
    return config


def flags(file: GgufFile, possible: Any) -> Config:
    """What the presence of tensors says."""
    known = {name: tensors for name, tensors in FLAGS.items() if hasattr(possible, name)}
    return {name: any(has(file, tensor) for tensor in known[name]) for name in known}


def default_config(model_type: str) -> Any:
    """transformers' config of a model, as it is where nothing is said."""
    try:
        import transformers
    except ImportError as error:
        raise GqcError(
            "the model of a GGUF file is transformers': pip install transformers"
        ) from error
    if model_type not in transformers.CONFIG_MAPPING:
        raise GqcError(f"this transformers has no {model_type}: pip install -U transformers")
    return transformers.CONFIG_MAPPING[model_type]()


def check_whole(file: GgufFile, prefix: str, architecture: Architecture) -> None:
    """Raises GqcError if a file lacks what only its metadata can say of a model."""
    for keys in (*REQUIRED, *((key,) for key in architecture.required)):
        if all(f"{prefix}.{key}" not in file.metadata for key in keys):
            names = " or ".join(f"{prefix}.{key}" for key in keys)
            raise GqcError(f"{file.path}: has no {names}; convert the model anew")


def check_kind(file: GgufFile) -> None:
    """Raises GqcError on files of other things, and of other blocks than today's."""
    version = file.metadata.get(QUANTIZATION, BLOCKS)
    if version != BLOCKS and any(entry.type not in DENSE for entry in file.entries.values()):
        raise GqcError(
            f"{file.path}: {QUANTIZATION} is {version!r}, expected {BLOCKS}: convert the model anew"
        )
    for key, allowed in KINDS.items():
        if (value := file.metadata.get(key)) is not None and value not in allowed:
            raise GqcError(f"{file.path}: {key} is {value!r}: it is not of a language model")


def has(file: GgufFile, tensor: str) -> bool:
    """Whether any block has a tensor."""
    return any(name.startswith("blk.") and name.endswith(f".{tensor}") for name in file.entries)


def sizes(known: Hyperparameters) -> Config:
    """Numbers of layers, tokens, and sizes of heads. Raises GqcError if they contradict tensors."""
    file = known.file
    numbers = [int(name.split(".")[1]) for name in file.entries if is_block(name)]
    found = max(numbers, default=-1) + 1
    blocks = known.size("block_count", max(found, 1))
    if blocks > MOST_LAYERS:
        raise known.error("block_count", f"is {blocks}, expected at most {MOST_LAYERS}")
    further = int(known.number("nextn_predict_layers", 0))
    if further >= blocks:
        raise known.error("nextn_predict_layers", f"is {further}, of {blocks} blocks")
    if found and found not in (blocks, blocks - further):
        raise known.error("block_count", f"is {blocks}, the file has {found} blocks")
    config: Config = {"num_hidden_layers": blocks - further}
    known.read.add("vocab_size")
    if (table := file.entries.get("token_embd.weight")) is not None:
        config["vocab_size"] = table.shape[0]
    elif (tokens := known.one("vocab_size")) is not None:
        config["vocab_size"] = tokens
    return config | heads(known)


def heads(known: Hyperparameters) -> Config:
    """Numbers of heads, and their size: that of hidden states over their number if none is said."""
    hidden = known.size("embedding_length", 1)
    count = known.size("attention.head_count", 1)
    size = known.size("attention.key_length", max(1, hidden // count))
    if known.size("attention.value_length", max(1, hidden // count)) != size:
        known.read.discard("attention.value_length")
    if known.get("attention.head_count") is None:
        return {}
    config = {"num_attention_heads": count}
    config["num_key_value_heads"] = known.size("attention.head_count_kv", count)
    return config if known.get("embedding_length") is None else config | {"head_dim": size}


def tokens(known: Hyperparameters, config: Config) -> Config:
    """Numbers of special tokens; None where the file says none, whatever the model's default."""
    said: Config = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"))
    for name, key in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        token = known.file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if type(token) is int and 0 <= token < config.get("vocab_size", 0):
            said[f"{name}_token_id"] = token
    return said


def is_block(name: str) -> bool:
    parts = name.split(".")
    return len(parts) > 2 and parts[0] == "blk" and parts[1].isdecimal() and len(parts[1]) < 6


def windows(known: Hyperparameters, architecture: Architecture, config: Config) -> Config:
    """Which layers attend to a window, and how long it is."""
    pattern = known.get("attention.sliding_window_pattern", architecture.pattern)
    window = int(known.number("attention.sliding_window", architecture.window))
    if not architecture.pattern:
        if window and not 0 < known.number("context_length", 0) <= window:
            known.read.discard("attention.sliding_window")
        return {}
    if architecture.pattern == 1:
        if pattern != 1 and window:
            known.read.discard("attention.sliding_window_pattern")
        return {"sliding_window": window or None}
    count = config["num_hidden_layers"]
    if isinstance(pattern, tuple):
        if len(pattern) < count:
            raise known.error("attention.sliding_window_pattern", f"is for {len(pattern)} layers")
        slides = [bool(value) for value in pattern[:count]]
    elif type(pattern) is int and pattern >= 0:
        slides = [pattern > 0 and layer % pattern < pattern - 1 for layer in range(count)]
    else:
        raise known.error("attention.sliding_window_pattern", f"is {pattern!r}")
    kinds = ["sliding_attention" if window and slide else "full_attention" for slide in slides]
    return {"sliding_window": window or None, "layer_types": kinds}


def check_gating(known: Hyperparameters, architecture: Architecture) -> None:
    function = known.number("expert_gating_func", 0) or architecture.gating[0]
    if function not in architecture.gating:
        raise known.error(
            "expert_gating_func", f"is {function}, which {said(architecture)} has not"
        )


def check_unread(known: Hyperparameters, config: Config, architecture: Architecture) -> None:
    """Raises GqcError that names all keys that say something that the model does not follow."""
    scale = config.get("head_dim", 0) ** -0.5 if config.get("head_dim") else 0
    refused = []
    for name in known.unread:
        key = name.removeprefix(f"{known.prefix}.")
        value = known.one(key) if key in NEUTRAL else known.get(key)
        plain = key == "attention.scale" and abs(value - scale) < 1e-6 * scale
        spare = key.endswith("_swa") and value == known.one(key.removesuffix("_swa"))
        spare |= key in EPSILONS and any(known.get(other) for other in EPSILONS if other != key)
        if value not in NEUTRAL.get(key, ()) and not plain and not spare:
            refused.append(f"{name} = {shortened(value)}")
    if refused:
        raise GqcError(
            f"{known.file.path}: {said(architecture)} does not follow {', '.join(refused)}: "
            f"the model would compute something else without a word; {REMEDY}"
        )


def said(architecture: Architecture) -> str:
    return f"the model {architecture.model_type}"
