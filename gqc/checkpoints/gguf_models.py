"""The models whose GGUF files are read: one row for each architecture of llama.cpp's.

Names of tensors and keys are in the tables of the gguf package and in `gguf_config`; here is what a
model's files have otherwise, as llama.cpp's converter writes them and its models read them.
"""

from __future__ import annotations

import re

from gqc.checkpoints.gguf_config import Architecture, Config, Hyperparameters, has
from gqc.checkpoints.gguf_file import GgufFile
from gqc.errors import GqcError

EXPERT = re.compile(r"blk\.\d+\.ffn_down(_exps|\.(\d{1,4}))\.weight$")
"""Tensors of all experts of a block, or of one."""

ROUTED = {"expert_feed_forward_length": ("intermediate_size",)}
"""Of models whose `intermediate_size` is that of an expert."""

SOFTMAX_OF_CHOSEN, SIGMOID = 3, 2
"""Functions of a router, as files number them."""


def has_experts(file: GgufFile, prefix: str) -> bool:
    return bool(file.metadata.get(f"{prefix}.expert_count")) or any(
        EXPERT.match(entry) for entry in file.entries
    )


def has_window(file: GgufFile, prefix: str) -> bool:
    return bool(file.metadata.get(f"{prefix}.attention.sliding_window"))


def has_temperature(file: GgufFile, prefix: str) -> bool:
    return bool(file.metadata.get(f"{prefix}.attention.temperature_scale"))


def has_sigmoid(file: GgufFile, prefix: str) -> bool:
    return file.metadata.get(f"{prefix}.expert_gating_func") == SIGMOID


UNUSED_WINDOW = 4096


def gemma(largest: int):
    """The scale of attention: by the size of heads, but in the largest model by that of hidden
    states over their number."""

    def more(known: Hyperparameters, config: Config) -> Config:
        # The model makes masks of windows even where no layer has one.
        window = config["sliding_window"] or UNUSED_WINDOW
        found: Config = {"sliding_window": window}
        if scale := known.number("attention.scale", 0):
            return found | {"query_pre_attn_scalar": whole(scale**-2)}
        if config["num_hidden_layers"] == largest and "hidden_size" in config:
            states = config["hidden_size"] // config["num_attention_heads"]
            return found | {"query_pre_attn_scalar": states}
        head = config.get("head_dim")
        return found if head is None else found | {"query_pre_attn_scalar": head}

    return more


def whole(value: float) -> float:
    """A number as an integer where it is one, but for the rounding of f32."""
    return round(value) if abs(value - round(value)) < 1e-4 * value else value


def granite(known: Hyperparameters, config: Config) -> Config:
    """Attention is scaled as usual where the file does not say; without rotary embeddings some are
    trained, which is told by a key of another purpose."""
    if known.get("rope.scaling.finetuned", True) is False:
        raise known.error(
            "rope.scaling.finetuned", "is False: granite without positions is not known"
        )
    scale = known.number("attention.scale", 0)
    if not scale and config.get("head_dim"):
        scale = config["head_dim"] ** -0.5
    return {"attention_multiplier": float(scale)} if scale else {}


def phi3(known: Hyperparameters, config: Config) -> Config:
    key = "rope.scaling.original_context_length"
    return (
        {} if known.get(key) is None else {"original_max_position_embeddings": known.size(key, 1)}
    )


def mixtral(known: Hyperparameters, config: Config) -> Config:
    """Old files have a tensor for each expert, and their number beside."""
    found = (EXPERT.match(entry) for entry in known.file.entries)
    numbers = [int(match[2]) for match in found if match is not None and match[2]]
    return {"num_local_experts": max(numbers) + 1} if numbers else {}


def dense_layers(known: Hyperparameters, config: Config) -> Config:
    """Layers without experts."""
    return {"mlp_only_layers": [i for i in layers(config) if is_dense(known, i)]}


def is_dense(known: Hyperparameters, layer: int) -> bool:
    return f"blk.{layer}.ffn_down.weight" in known.file.entries


def layers(config: Config) -> range:
    return range(config["num_hidden_layers"])


def leading_layers(known: Hyperparameters, config: Config) -> Config:
    """How many layers have no experts, where the file does not say."""
    if "first_k_dense_replace" in config:
        return {}
    count = len(layers(config))
    return {
        "first_k_dense_replace": next((i for i in layers(config) if not is_dense(known, i)), count)
    }


def deepseek(known: Hyperparameters, config: Config) -> Config:
    """Sizes of heads that come from latent vectors, and how many layers have no experts.

    Newer files say the sizes of the latent vectors that heads attend to, and those of heads beside.
    """
    heads = config.get("num_attention_heads")
    dense = leading_layers(known, config)
    if heads is None or known.get("rope.dimension_count") is None:
        return dense
    rotary = known.size("rope.dimension_count", 1)
    newer = known.get("attention.key_length_mla") is not None
    key = "attention.key_length_mla" if newer else "attention.key_length"
    value = "attention.value_length_mla" if newer else "attention.value_length"
    if newer:
        latent = known.size("attention.kv_lora_rank", 1)
        if known.size("attention.key_length", latent + rotary) != latent + rotary:
            known.read.discard("attention.key_length")
        if known.size("attention.value_length", latent) != latent:
            known.read.discard("attention.value_length")
    head = known.size(key, 1)
    if head <= rotary:
        raise known.error(key, f"is {head}, of which {rotary} rotate")
    low = known.size("attention.q_lora_rank", 1) if has(known.file, "attn_q_a.weight") else None
    return dense | {
        "qk_rope_head_dim": rotary,
        "qk_nope_head_dim": head - rotary,
        "v_head_dim": known.size(value, 1),
        "head_dim": rotary,
        "num_key_value_heads": heads,
        "q_lora_rank": low,
    }


def deepseek_v2(known: Hyperparameters, config: Config) -> Config:
    grouped = config["n_group"] > 1
    method = "group_limited_greedy" if grouped else "greedy"
    return deepseek(known, config) | {"topk_method": method}


def texts(known: Hyperparameters, config: Config) -> Config:
    """Of a model of images too: in texts all sections of heads rotate by the same positions, and
    no layer adds anything of an image."""
    known.read.update(("rope.dimension_sections", "n_deepstack_layers"))
    return {}


def qwen3_next(known: Hyperparameters, config: Config) -> Config:
    """Which layers attend, and which have a state."""
    recurrent = known.get("attention.recurrent_layers")
    every = known.size("full_attention_interval", 4)
    if not isinstance(recurrent, tuple):
        recurrent = [(i + 1) % every != 0 for i in layers(config)]
    if len(recurrent) < len(layers(config)):
        raise known.error("attention.recurrent_layers", f"is for {len(recurrent)} layers")
    kinds = ["linear_attention" if recurrent[i] else "full_attention" for i in layers(config)]
    values = config.get("linear_num_value_heads")
    inner = known.number("ssm.inner_size", 0)
    sizes = {"linear_value_head_dim": int(inner // values)} if inner and values else {}
    if values and inner % values:
        raise known.error("ssm.inner_size", f"is {inner}, for {values} heads")
    return dense_layers(known, config) | {"layer_types": kinds} | sizes


LOCAL = 10000.0
"""Base of the frequencies in Gemma 3's layers that attend to a window."""

ROUTER = ("expert_used_count",)
LATENT = (*ROUTER, "attention.kv_lora_rank", "rope.dimension_count")
WINDOW = ("attention.sliding_window",)
STATE = tuple(
    f"ssm.{key}" for key in ("conv_kernel", "state_size", "group_count", "time_step_rank")
)
"""Keys without which a model would be another one, of the same shapes or not."""

UNGROUPED: Config = {"n_group": 1, "topk_group": 1}

ARCHITECTURES: dict[str, tuple[Architecture, ...]] = {
    "llama": (
        Architecture(
            "mixtral", has_experts, rotary=True, keys=ROUTED, required=ROUTER, more=mixtral
        ),
        Architecture("llama", rotary=True),
    ),
    "mistral3": (
        Architecture("ministral3", has_temperature, rotary=True, temperature=True),
        Architecture("mistral", rotary=True, implied={"sliding_window": None}),
    ),
    "arcee": (Architecture("arcee", rotary=True),),
    "smollm3": (Architecture("smollm3", rotary=True),),
    "starcoder2": (Architecture("starcoder2"),),
    "stablelm": (Architecture("stablelm", partial=True),),
    "nemotron": (Architecture("nemotron", norms=1, partial=True),),
    "seed_oss": (Architecture("seed_oss"),),
    "olmoe": (Architecture("olmoe", required=ROUTER),),
    "ernie4_5": (Architecture("ernie4_5"),),
    "exaone4": (Architecture("exaone4", pattern=4),),
    "hunyuan-dense": (Architecture("hunyuan_v1_dense"),),
    "glm4moe": (
        Architecture(
            "glm4_moe",
            partial=True,
            gating=(SIGMOID,),
            required=ROUTER,
            implied=UNGROUPED | {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
            more=leading_layers,
        ),
    ),
    "qwen2": (Architecture("qwen2"),),
    "qwen3": (Architecture("qwen3"),),
    "qwen2vl": (Architecture("qwen2", more=texts),),
    "qwen3vl": (Architecture("qwen3", more=texts),),
    "qwen3vlmoe": (
        Architecture(
            "qwen3_moe",
            required=ROUTER,
            implied={"norm_topk_prob": True},
            more=lambda known, config: dense_layers(known, config) | texts(known, config),
        ),
    ),
    "qwen2moe": (Architecture("qwen2_moe", required=ROUTER, more=dense_layers),),
    "qwen3moe": (
        Architecture(
            "qwen3_moe",
            required=ROUTER,
            implied={"norm_topk_prob": True},
            more=dense_layers,
        ),
    ),
    "qwen3next": (
        Architecture(
            "qwen3_next",
            norms=1,
            partial=True,
            required=(*ROUTER, *STATE, "ssm.inner_size"),
            implied={"norm_topk_prob": True},
            more=qwen3_next,
        ),
    ),
    "gemma": (Architecture("gemma", norms=1),),
    "gemma2": (Architecture("gemma2", norms=1, pattern=2, window=4096, more=gemma(46)),),
    "gemma3": (
        Architecture(
            "gemma3_text",
            norms=1,
            pattern=6,
            apart=True,
            local_base=LOCAL,
            keys={"attn_logit_softcapping": ()},  # the config has it, and the model has not
            more=gemma(62),
        ),
    ),
    "phi2": (Architecture("phi", partial=True),),
    "phi3": (Architecture("phi3", partial=True, pattern=1, more=phi3),),
    "glm4": (Architecture("glm4", partial=True),),
    "granite": (Architecture("granite", rotary=True, more=granite),),
    "olmo2": (
        Architecture("olmo3", has_window, pattern=4, apart=True),
        Architecture("olmo2"),
    ),
    "command-r": (Architecture("cohere", implied={"logit_scale": 1.0}),),
    "cohere2": (Architecture("cohere2", pattern=4, required=WINDOW, implied={"logit_scale": 1.0}),),
    "gpt-oss": (
        Architecture(
            "gpt_oss",
            interleaved=True,
            pattern=2,
            keys=ROUTED,
            gating=(0, SOFTMAX_OF_CHOSEN),
            required=(*ROUTER, *WINDOW),
            yarn={"truncate": False},
        ),
    ),
    "deepseek2": (
        Architecture(
            "deepseek_v3",
            has_sigmoid,
            gating=(SIGMOID,),
            log_unit=0.1,
            required=LATENT,
            implied=UNGROUPED | {"norm_topk_prob": False, "routed_scaling_factor": 1.0},
            more=deepseek,
        ),
        Architecture(
            "deepseek_v2",
            log_unit=0.1,
            keys={"expert_weights_norm": ()},
            required=LATENT,
            implied=UNGROUPED,
            more=deepseek_v2,
        ),
    ),
}
"""By `general.architecture`, the first whose `when` says so."""


def architecture_of(file: GgufFile) -> tuple[str, Architecture]:
    """The name of a file's architecture, and its row. Raises GqcError on unknown ones."""
    name = file.metadata.get("general.architecture")
    if not isinstance(name, str) or name not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        raise GqcError(f"{file.path}: general.architecture is {name!r}, expected one of {known}")
    return name, next(row for row in ARCHITECTURES[name] if row.when(file, name))
