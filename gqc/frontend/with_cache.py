"""A language model of transformers as a function of tokens and a position, its cache in buffers.

torch.export takes it whole, for any number of tokens at any position.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from gqc.errors import GqcError
from gqc.frontend.linears import copy_shared
from gqc.passes.attention_kernel import STEP
from gqc.runtime import attention  # noqa: F401  defines the operator

ATTENTION = "gqc_grouped"
"""What transformers knows `attend` by."""
CACHE = "kv_cache"
"""Where a model has its caches."""


class CacheLayer(CacheLayerMixin):
    """Keys and values [1, heads, length, head size], `start` of them there, written in place."""

    is_compileable = True
    keys: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]
    values: Tensor  # pyright: ignore[reportIncompatibleVariableOverride]

    def __init__(self, keys: Tensor, values: Tensor, start: int):
        super().__init__()
        self.keys, self.values, self.start = keys, values, start
        self.is_initialized = True

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing is left to do."""

    def update(self, keys: Tensor, values: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        end = self.start + keys.shape[2]
        self.keys[:, :, self.start : end] = keys
        self.values[:, :, self.start : end] = values
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_max_length(self) -> int:
        return self.keys.shape[2]

    def get_seq_length(self) -> int:
        return self.start

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.start + query_length, 0


class WithCache:
    """What a model is mixed with whose forward takes tokens [1, S] and the position of the first,
    and gives logits [1, 1, vocabulary] of the token after the last."""

    def forward(self: Any, input_ids: Tensor, start: int) -> Tensor:
        count = input_ids.shape[1]
        layers = list(getattr(self, CACHE))
        torch._check(start + count <= layers[0].keys.shape[2])
        return (
            super()
            .forward(  # pyright: ignore[reportAttributeAccessIssue]
                input_ids,
                position_ids=torch.arange(count, device=input_ids.device)[None] + start,
                past_key_values=Cache(layers=[CacheLayer(m.keys, m.values, start) for m in layers]),
                use_cache=True,
                logits_to_keep=1,
            )
            .logits
        )


def with_cache(model: Any, length: int) -> nn.Module:
    """A copy of a model, sharing its weights, that is `WithCache` of this many tokens.

    Raises GqcError as `gqc.generator` does.
    """
    if not isinstance(model, PreTrainedModel) or not model.can_generate():
        raise GqcError(f"{type(model).__name__} is no causal language model of transformers")
    new: Any = copy_shared(model)
    config = new.config
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        raise GqcError(f"{type(model).__name__} has sliding windows: use gqc.load and generate")
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    room = -(-length // STEP) * STEP
    layers = [
        empty_cache((1, heads, room, size), model.dtype) for _ in range(config.num_hidden_layers)
    ]
    new.set_attn_implementation(registered_attention())
    new.add_module(CACHE, nn.ModuleList(layers))
    new.__class__ = type(f"{type(model).__name__}WithCache", (WithCache, type(model)), {})
    return new


def empty_cache(shape: tuple[int, ...], dtype: torch.dtype) -> nn.Module:
    """Keys and values of a layer, of a shape and dtype."""
    cache = nn.Module()
    for name in ("keys", "values"):
        cache.register_buffer(name, torch.zeros(shape, dtype=dtype), persistent=False)
    return cache


def registered_attention() -> str:
    """The name by which transformers finds `attend`, which makes no mask."""

    def no_mask(**_: Any) -> None:
        return None

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, no_mask)  # pyright: ignore[reportArgumentType]
    return ATTENTION


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of query [1, H, S, D], the last positions, to keys and values [1, H / G, L, D].

    Gives [1, S, H, D]. Raises GqcError on what is not done.
    """
    if others.get("softcap") is not None or others.get("s_aux") is not None:
        raise GqcError(f"{type(module).__name__} caps its scores or has sinks: use gqc.load")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return torch.ops.gqc.attend(query, key, value, scale), None
