"""`nn.MultiheadAttention` as four linear layers, which gqc compiles as it does any others.

Torch packs three of its weights into one parameter and reads that of the fourth layer, so that none
of them is ever called. Here they are `q_proj`, `k_proj`, `v_proj` and `out_proj`, on the same
storage.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gqc.errors import GqcError
from gqc.runtime.weight_handle import CALLS

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


class Attention(nn.Module):
    """Called as the module that it replaces; in evaluation, so without dropout.

    Query [L, B, E], key [S, B, Ek] and value [S, B, Ev]; [B, …] with `batch_first`, or without B.
    Gives the output, of the query's shape, and the weights [B, L, S], or None for them.
    """

    def __init__(self, packed: nn.MultiheadAttention):
        super().__init__()
        self.embed_dim, self.num_heads = packed.embed_dim, packed.num_heads
        self.batch_first = packed.batch_first
        weights = packed_weights(packed)
        biases = (None,) * 3 if packed.in_proj_bias is None else packed.in_proj_bias.chunk(3)
        for name, weight, bias in zip(PROJECTIONS, weights, biases, strict=True):
            self.add_module(name, linear(weight, bias))
        self.out_proj = packed.out_proj
        # Torch's encoder layers ask for these, and take no path of their own without a bias.
        self.in_proj_bias = None
        self._qkv_same_embed_dim = packed._qkv_same_embed_dim

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        layers = [*map(self.get_submodule, PROJECTIONS), self.out_proj]
        return attend(
            [query, key, value],
            layers,
            self.num_heads,
            self.batch_first,
            key_padding_mask,
            need_weights,
            attn_mask,
            average_attn_weights,
            is_causal,
        )


def attend(
    inputs: Sequence[Tensor],
    layers: Sequence[Callable[[Tensor], Tensor]],
    heads: int,
    batch_first: bool,
    padding: Tensor | None,
    need_weights: bool,
    attn_mask: Tensor | None,
    average_weights: bool,
    is_causal: bool,
) -> tuple[Tensor, Tensor | None]:
    """`Attention`, by layers of query, key, value and the output."""
    if is_causal and attn_mask is None:
        raise GqcError("is_causal is a hint about attn_mask: give that too")
    batched, at = inputs[0].dim() == 3, 0 if batch_first else 1
    inputs = [x if batched else x.unsqueeze(at) for x in inputs]
    inputs = [x if batch_first else x.transpose(0, 1) for x in inputs]
    padding = padding if padding is None or batched else padding.unsqueeze(0)
    *projections, output = layers
    q, k, v = (
        project(x).unflatten(-1, (heads, -1)).transpose(1, 2)
        for project, x in zip(projections, inputs, strict=True)
    )
    causal = is_causal and padding is None and not need_weights
    mask = None if causal else mask_of(q, attn_mask, padding)
    weights = None
    if need_weights:
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        found = weights @ v
        weights = weights.mean(1) if average_weights else weights
        weights = weights if batched else weights.squeeze(0)
    else:
        found = F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal)
    found = output(found.transpose(1, 2).flatten(2))
    found = found if batch_first else found.transpose(0, 1)
    return found if batched else found.squeeze(at), weights


def mask_of(q: Tensor, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """What is added to scores [B, H, L, S]: of a mask [L, S] or [B·H, L, S] and one [B, S]."""
    parts = []
    if attn_mask is not None:
        mask = additive(attn_mask, q.dtype)
        parts.append(mask if mask.dim() == 2 else mask.unflatten(0, (-1, q.shape[1])))
    if padding is not None:
        parts.append(additive(padding, q.dtype)[:, None, None])
    return sum(parts[1:], parts[0]) if parts else None


SIGNATURE = inspect.signature(F.multi_head_attention_forward)


def attend_by_layers(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
    """`F.multi_head_attention_forward` of the weights of compiled layers, which are called.

    NotImplemented where it does more than they do: keys and values of its own, other biases.
    """
    bound = SIGNATURE.bind(*args, **kwargs)
    bound.apply_defaults()
    given = bound.arguments
    weights = [given[f"{name}_weight"] for name in (*PROJECTIONS, "out_proj")]
    biases = (None,) * 3 if given["in_proj_bias"] is None else given["in_proj_bias"].chunk(3)
    own = [given[name] for name in ("bias_k", "bias_v", "static_k", "static_v")]
    drops = given["training"] and given["dropout_p"] > 0
    if not given["use_separate_proj_weight"] or drops or given["add_zero_attn"]:
        return NotImplemented
    if any(each is not None for each in own):
        return NotImplemented
    layers = [getattr(weight, "layer", None) for weight in weights]
    if not all(map(is_layer_with, layers, (*biases, given["out_proj_bias"]))):
        return NotImplemented
    return attend(
        [given[name] for name in ("query", "key", "value")],
        layers,  # pyright: ignore[reportArgumentType]
        given["num_heads"],
        False,
        given["key_padding_mask"],
        given["need_weights"],
        given["attn_mask"],
        given["average_attn_weights"],
        given["is_causal"],
    )


def is_layer_with(layer: Any, bias: Tensor | None) -> bool:
    """Whether something is a layer, of this bias."""
    if not isinstance(layer, nn.Module):
        return False
    own = getattr(layer, "bias", None)
    return own is bias or (own is not None and bias is not None and torch.equal(own, bias))


CALLS[F.multi_head_attention_forward] = attend_by_layers


def additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of numbers, −inf where one of truth values is set."""
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros_like(mask, dtype=dtype).masked_fill(mask, -torch.inf)


def packed_weights(packed: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    """The weights of query, key and value."""
    if packed._qkv_same_embed_dim:
        return packed.get_parameter("in_proj_weight").chunk(3)
    return tuple(packed.get_parameter(f"{name}_weight") for name in PROJECTIONS)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear layer on the storage of a weight and a bias."""
    n, k = weight.shape
    layer = nn.Linear(k, n, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def is_packed(module: Any) -> bool:
    """Whether a module is torch's own attention, and does and holds nothing else."""
    if type(module) is not nn.MultiheadAttention or module.add_zero_attn:
        return False
    changed = module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module)
    names = {name for name, _ in module.named_parameters()}
    known = {"in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"}
    return not changed and names <= known | {f"{name}_weight" for name in PROJECTIONS}


def separate_attention(model: nn.Module) -> None:
    """Put `Attention` in the place of torch's, everywhere in a model.

    Torch's encoder no longer packs padded batches then, which only its own path needs.
    """
    new: dict[nn.Module, Attention] = {}
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.MultiheadAttention) and is_packed(child):
                parent._modules[name] = new.setdefault(child, Attention(child))
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoder) and new:
            module.use_nested_tensor = False
