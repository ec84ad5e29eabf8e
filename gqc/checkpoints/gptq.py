"""GPTQ as AutoGPTQ (v1) and GPTQModel (v1, v2) write it, in 2, 3, 4 or 8 bits, with act-order.

A weight [N, K] is `(q − z) · s`: column k has the scale and the zero point of group `g_idx[k]`.
"""

from __future__ import annotations

from typing import Any

import torch

from gqc.checkpoints.awq import SCALES, group_size
from gqc.checkpoints.bits import unpack, words_of
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import Layer, Reader
from gqc.checkpoints.weights import Permuted, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled

BITS = (2, 3, 4, 8)

STORED_LESS = {"gptq": 1, "gptq_v2": 0}
"""What zero points on disk are too low by, in each format."""


class Gptq(Reader):
    """qweight i32 [K·b/32, N], qzeros i32 [K/g, N·b/32], scales [K/g, N], g_idx i32 [K]."""

    PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        form = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
        if not isinstance(form, str) or form not in STORED_LESS:
            raise GqcError(
                f"quantization config: checkpoint_format is {form!r}, expected one of "
                f"{', '.join(STORED_LESS)}: save the model in one of these"
            )
        if option(quantization, "is_marlin_format", bool, False):
            raise GqcError("quantization config: is_marlin_format is set: save the model without")
        if option(quantization, "pack_dtype", str, "int32") != "int32":
            raise GqcError("quantization config: pack_dtype must be int32")
        self.stored_less = STORED_LESS[form]
        self.symmetric = option(quantization, "sym", bool, False)
        self.act_order = option(quantization, "desc_act", bool, False)
        self.choices = choices(quantization)

    def weight(self, layer: Layer) -> BlockScaled | Permuted:
        words, n = layer.spec("qweight", 2).shape
        blocks, zero_words = layer.spec("qzeros", 2).shape
        bits = next((b for b in BITS if words_of(n, b) == zero_words and n * b % 32 == 0), None)
        if bits is None:
            raise layer.error("qzeros", f"has {zero_words} columns for N = {n}, expected N·bits/32")
        k = words * 32 // bits
        group = self.group(layer, bits, k, blocks)
        codes = unpack(layer.read("qweight", ["I32"], (words, n)).T.contiguous(), bits, k)
        scale = layer.read("scales", SCALES, (blocks, n)).T.contiguous()
        zero = unpack(layer.read("qzeros", ["I32"], (blocks, zero_words)), bits, n).T
        zero = (zero + self.stored_less & (1 << bits) - 1).contiguous()
        order = self.order(layer, k, blocks)
        if order is not None:
            codes = codes[:, order]
        weight = self.signed(layer, codes, zero, scale, bits, group)
        return weight if order is None else Permuted(weight, order)

    def signed(
        self,
        layer: Layer,
        codes: torch.Tensor,
        zero: torch.Tensor,
        scale: torch.Tensor,
        bits: int,
        group: int | None,
    ) -> BlockScaled:
        """The weight, of signed codes without zero points where the config says symmetric."""
        if not self.symmetric:
            return block_scaled(f"ui{bits}", (1, group), codes, scale, zero, "quantized")
        middle = 1 << bits - 1
        if (zero != middle).any():
            raise layer.error("qzeros", f"are not all {middle}, but the config says sym")
        return block_scaled(f"si{bits}", (1, group), (codes - middle).view(torch.int8), scale)

    def group(self, layer: Layer, bits: int, k: int, blocks: int) -> int | None:
        """Elements of a group, as the config says; of several configs, the one that fits."""
        fitting = [g for b, g in self.choices if b == bits and blocks * (g or k) == k]
        if not fitting:
            said = " or ".join(f"{b} bits in groups of {g or 'a row'}" for b, g in self.choices)
            raise layer.error(
                "qzeros", f"has {blocks} groups of {bits} bits for K = {k}, the config says {said}"
            )
        return fitting[0]

    def order(self, layer: Layer, k: int, blocks: int) -> torch.Tensor | None:
        """Columns in the order of their groups; None where they are in it already."""
        if not layer.has("g_idx"):
            if self.act_order:
                raise layer.error("g_idx", "is missing, but the config says desc_act")
            return None
        groups = layer.read("g_idx", ["I32", "I64"], (k,)).long()
        return group_order(layer, "g_idx", groups, blocks)


def group_order(layer: Layer, part: str, groups: torch.Tensor, blocks: int) -> torch.Tensor | None:
    """Columns sorted by group; None where they are. Raises GqcError unless groups are of one size.

    groups: [K], the group of each column.
    """
    size = len(groups) // blocks
    if groups.min() < 0 or groups.max() >= blocks:
        raise layer.error(part, f"names groups beyond the {blocks} there are")
    if (groups.bincount(minlength=blocks) != size).any():
        raise layer.error(part, f"does not put {size} columns into each of {blocks} groups")
    ordered = (groups[1:] >= groups[:-1]).all()
    return None if ordered else groups.argsort(stable=True)


def choices(quantization: dict[str, Any]) -> list[tuple[int, int | None]]:
    """Bits and group of the config, then those of its `dynamic` exceptions."""
    first = {key: option(quantization, key, int) for key in ("bits", "group_size")}
    exceptions = option(quantization, "dynamic", dict, {}).values()
    configs = [first, *({**first, **e} for e in exceptions if isinstance(e, dict))]
    for config in configs:
        if config["bits"] not in BITS:
            raise GqcError(
                f"quantization config: bits is {config['bits']!r}, expected one of {BITS}"
            )
    return [(config["bits"], group_size(config)) for config in configs]
