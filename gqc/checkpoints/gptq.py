"""GPTQ as AutoGPTQ (v1) and GPTQModel (v1, v2) write it, in 2, 3, 4 or 8 bits, with act-order.

A weight [N, K] is `(q − z) · s`: column k has the scale and the zero point of group `g_idx[k]`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from gqc.checkpoints.awq import SCALES, group_size
from gqc.checkpoints.bits import unpack, words_of
from gqc.checkpoints.exceptions import Exceptions
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import Layer, Reader
from gqc.checkpoints.weights import Permuted, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled

BITS = (2, 3, 4, 8)

STORED_LESS = {"gptq": 1, "gptq_v2": 0}
"""What zero points on disk are too low by, in each format."""


@dataclass(frozen=True)
class Choice:
    """How one layer is quantized. group: elements of a group, None for a whole row."""

    bits: int
    group: int | None
    symmetric: bool
    act_order: bool

    @staticmethod
    def of(config: Mapping[str, Any]) -> Choice:
        bits = option(config, "bits", int)
        if bits not in BITS:
            raise GqcError(f"quantization config: bits is {bits!r}, expected one of {BITS}")
        symmetric = option(config, "sym", bool, False)
        return Choice(bits, group_size(config), symmetric, option(config, "desc_act", bool, False))

    def __str__(self) -> str:
        return f"{self.bits} bits in groups of {self.group or 'a row'}"


class Gptq(Reader):
    """qweight i32 [K·b/32, N], qzeros i32 [K/g, N·b/32], scales [K/g, N], g_idx i32 [K].

    The last group of a row is shorter where groups do not divide K.
    """

    PARTS = frozenset({"qweight", "qzeros", "scales", "g_idx"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        self.form = self.format_of(quantization)
        if option(quantization, "is_marlin_format", bool, False):
            raise GqcError("quantization config: is_marlin_format is set: save the model without")
        if option(quantization, "pack_dtype", str, "int32") != "int32":
            raise GqcError("quantization config: pack_dtype must be int32")
        self.exceptions = Exceptions(quantization)
        for each in (quantization, *filter(None, dict(self.exceptions.configs).values())):
            Choice.of(each)  # raises on what is wrong
        self.warned = False

    def format_of(self, quantization: dict[str, Any]) -> str:
        """The row of `STORED_LESS` that the config names."""
        form = quantization.get("checkpoint_format") or quantization.get("format") or "gptq"
        if not isinstance(form, str) or form not in STORED_LESS:
            raise GqcError(
                f"quantization config: checkpoint_format is {form!r}, expected one of "
                f"{', '.join(STORED_LESS)}: save the model in one of these"
            )
        return form

    def weight(self, layer: Layer) -> BlockScaled | Permuted:
        choice = Choice.of(self.exceptions.config_of(layer, "qweight"))
        bits, (words, n) = choice.bits, layer.spec("qweight", 2).shape
        blocks, zero_words = layer.spec("qzeros", 2).shape
        k = words * 32 // bits
        group = choice.group or k
        if zero_words != words_of(n, bits) or n * bits % 32 or blocks != -(-k // group):
            raise layer.error(
                "qzeros",
                f"is {[blocks, zero_words]} for qweight {[words, n]}; the config says {choice}",
            )
        codes = unpack(layer.read("qweight", ["I32"], (words, n)).T.contiguous(), bits, k)
        scale = layer.read("scales", SCALES, (blocks, n)).T.contiguous()
        zero = unpack(layer.read("qzeros", ["I32"], (blocks, zero_words)), bits, n).T
        order = self.order(layer, choice, k, group)
        codes = codes if order is None else codes[:, order]
        size, (scale, zero) = whole_blocks(k, group, scale, zero)
        block = None if choice.group is None else size
        weight = self.valued(layer, choice, codes, zero, scale, block)
        return weight if order is None else Permuted(weight, order)

    def valued(
        self,
        layer: Layer,
        choice: Choice,
        codes: torch.Tensor,
        stored: torch.Tensor,
        scale: torch.Tensor,
        group: int | None,
    ) -> BlockScaled:
        """The weight, of signed codes without zero points where the config says symmetric.

        The zero points of symmetric weights are known, so the stored ones tell the format.
        """
        bits, middle = choice.bits, 1 << choice.bits - 1
        if not choice.symmetric:
            zero = (stored + STORED_LESS[self.form] & (1 << bits) - 1).contiguous()
            return block_scaled(f"ui{bits}", (1, group), codes, scale, zero, "quantized")
        forms = [form for form, less in STORED_LESS.items() if (stored == middle - less).all()]
        if not forms:
            raise layer.error("qzeros", f"are not all {middle}, but the config says sym")
        if self.form not in forms:
            self.warn_of_format(layer, forms[0])
        return block_scaled(f"si{bits}", (1, group), (codes - middle).view(torch.int8), scale)

    def warn_of_format(self, layer: Layer, form: str) -> None:
        """Tell once that symmetric zero points are of another format than the config says."""
        if not self.warned:
            warnings.warn(
                f"{layer.key('qzeros')} is as {form} stores it, though the config says "
                f"{self.form}: read as {form}",
                stacklevel=2,
            )
        self.warned = True

    def order(self, layer: Layer, choice: Choice, k: int, group: int) -> torch.Tensor | None:
        """Columns in the order of their groups; None where they are in it already."""
        if not layer.has("g_idx"):
            if choice.act_order:
                raise layer.error("g_idx", "is missing, but the config says desc_act")
            return None
        groups = layer.read("g_idx", ["I32", "I64"], (k,)).long()
        return group_order(layer, "g_idx", groups, group)


def whole_blocks(k: int, group: int, *parts: torch.Tensor) -> tuple[int, list[torch.Tensor]]:
    """Elements of blocks that divide K, and the parts [N, ceil(K/group)] with one for each."""
    size = math.gcd(k, group)
    repeated = (part.repeat_interleave(group // size, 1)[:, : k // size] for part in parts)
    return size, [part.contiguous() for part in repeated]


def group_order(layer: Layer, part: str, groups: torch.Tensor, group: int) -> torch.Tensor | None:
    """Columns sorted by group; None where they are. Raises GqcError unless groups are of one size,
    but for the last one where they do not divide K.

    groups: [K], the group of each column. group: columns of a group.
    """
    blocks = -(-len(groups) // group)
    if groups.min() < 0 or groups.max() >= blocks:
        raise layer.error(part, f"names groups beyond the {blocks} there are")
    sizes = (torch.arange(len(groups)) // group).bincount()
    if not torch.equal(groups.bincount(minlength=blocks), sizes):
        raise layer.error(part, f"does not put {group} columns into each of {blocks} groups")
    ordered = (groups[1:] >= groups[:-1]).all()
    return None if ordered else groups.argsort(stable=True)
