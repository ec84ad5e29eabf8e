"""GGUF: block types that are grouped linear, and Hugging Face's names for their tensors.

Blocks as in ggml's `ggml-common.h`, arithmetic as in its `dequantize_row_*`. The K types have
scales of two levels, `d · sc`, whose products are exact in f32.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gqc.checkpoints.bits import unpack
from gqc.checkpoints.files import is_finite
from gqc.checkpoints.gguf_file import GgufFile
from gqc.checkpoints.weights import block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import Scheme

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]
"""Codes [..., block], scales [..., block / group], and zero points like these or None."""


def f16(raw: torch.Tensor, start: int) -> torch.Tensor:
    """The f16 at a byte of each block, [..., 1]."""
    return raw[..., start : start + 2].contiguous().view(torch.float16)


def nibbles(raw: torch.Tensor, start: int, run: int) -> torch.Tensor:
    """Codes of 4 bits to the end: of each `run` bytes all low halves, then all high halves."""
    packed = raw[..., start:].unflatten(-1, (-1, run))
    return torch.cat([packed & 15, packed >> 4], -1).flatten(-2)


def fifth_bit(raw: torch.Tensor, start: int) -> torch.Tensor:
    """Bit 4 of 32 codes, from 4 bytes."""
    return unpack(raw[..., start : start + 4], 1, 32) << 4


def q4_0(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 2, 16).view(torch.int8) - 8, f16(raw, 0), None


def q4_1(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 4, 16), f16(raw, 0), f16(raw, 2)


def q5_0(raw: torch.Tensor) -> Parts:
    return (nibbles(raw, 6, 16) | fifth_bit(raw, 2)).view(torch.int8) - 16, f16(raw, 0), None


def q5_1(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 8, 16) | fifth_bit(raw, 4), f16(raw, 0), f16(raw, 2)


def q8_0(raw: torch.Tensor) -> Parts:
    return raw[..., 2:].view(torch.int8), f16(raw, 0), None


def six_bits(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eight scales and eight minima of 6 bits, from the 12 bytes that K types have at byte 4.

    Bytes 0–3 and 4–7 hold the first four of each, and above them the high two bits of the others,
    whose low halves share bytes 8–11.
    """
    first, second, rest = raw[..., 4:16].unflatten(-1, (3, 4)).unbind(-2)
    scale = torch.cat([first & 63, (rest & 15) | (first >> 6) << 4], -1)
    least = torch.cat([second & 63, rest >> 4 | (second >> 6) << 4], -1)
    return f16(raw, 0).float() * scale, -(f16(raw, 2).float() * least)


def q4_k(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 16, 32), *six_bits(raw)


def q5_k(raw: torch.Tensor) -> Parts:
    """Bit 4 of sub-block i is bit i of 32 bytes."""
    shifts = torch.arange(8, dtype=torch.uint8).unsqueeze(-1)
    high = (raw[..., 16:48].unsqueeze(-2) >> shifts & 1) << 4
    return nibbles(raw, 48, 32) | high.flatten(-2), *six_bits(raw)


def q6_k(raw: torch.Tensor) -> Parts:
    """Of each half, 64 bytes of low halves and 32 of four pairs of high bits; 16 scales; d."""
    low = nibbles(raw[..., :128], 0, 64)
    shifts = torch.arange(0, 8, 2, dtype=torch.uint8).unsqueeze(-1)
    high = raw[..., 128:192].unflatten(-1, (2, 1, 32)) >> shifts & 3
    codes = (low | high.flatten(-3) << 4).view(torch.int8) - 32
    return codes, f16(raw, 208).float() * raw[..., 192:208].view(torch.int8), None


def mxfp4(raw: torch.Tensor) -> Parts:
    return nibbles(raw, 1, 16), raw[..., :1].view(torch.float8_e8m0fnu), None


@dataclass(frozen=True)
class BlockType:
    """One row: elements and bytes of a block, elements of a group, and what takes it apart."""

    name: str
    elements: int
    bytes: int
    element: str
    group: int
    parts: Callable[[torch.Tensor], Parts]


BLOCK_TYPES: dict[int, BlockType] = {
    2: BlockType("Q4_0", 32, 18, "si4", 32, q4_0),
    3: BlockType("Q4_1", 32, 20, "ui4", 32, q4_1),
    6: BlockType("Q5_0", 32, 22, "si8", 32, q5_0),
    7: BlockType("Q5_1", 32, 24, "ui8", 32, q5_1),
    8: BlockType("Q8_0", 32, 34, "si8", 32, q8_0),
    12: BlockType("Q4_K", 256, 144, "ui4", 32, q4_k),
    13: BlockType("Q5_K", 256, 176, "ui8", 32, q5_k),
    14: BlockType("Q6_K", 256, 210, "si8", 16, q6_k),
    39: BlockType("MXFP4", 32, 17, "f4E2M1FN", 32, mxfp4),
}
"""Quantized types by their numbers in ggml; 5 and 6 bits are stored as 8."""

DENSE: dict[int, torch.dtype] = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
"""Types that are not quantized."""

TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}

LLAMA = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    **{f"attn_{x}": f"self_attn.{x}_proj" for x in "qkv"},
    **{f"attn_{x}_norm": f"self_attn.{x}_norm" for x in "qk"},
    "attn_output": "self_attn.o_proj",
    **{f"ffn_{x}": f"mlp.{x}_proj" for x in ("gate", "up", "down")},
}
GEMMA3 = LLAMA | {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
EXPERTS = {f"ffn_{x}_exps": f"mlp.experts.{x}_proj" for x in ("gate", "up", "down")}
"""Stacks [E, N, K], parameters by these names and no modules."""
MOE = LLAMA | {"ffn_gate_inp": "mlp.gate"} | EXPERTS


@dataclass(frozen=True)
class Architecture:
    """Names of a layer's modules in Hugging Face's model, and how the file differs from it.

    rotary: rows of q and k are in pairs that rotate together, and not in halves. norms: what was
    added to the weights of norms. keys: of config.json, by those of the metadata, beside `CONFIG`.
    implied: what config.json says and the metadata does not.
    """

    model_type: str
    names: dict[str, str] = field(default_factory=lambda: LLAMA)
    rotary: bool = False
    norms: int = 0
    keys: dict[str, str] = field(default_factory=dict)
    implied: dict[str, Any] = field(default_factory=dict)


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("llama", rotary=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma3": Architecture("gemma3_text", GEMMA3, norms=1),
    "qwen3moe": Architecture(
        "qwen3_moe",
        MOE,
        keys={
            "num_experts": "expert_count",
            "num_experts_per_tok": "expert_used_count",
            "moe_intermediate_size": "expert_feed_forward_length",
        },
        implied={"norm_topk_prob": True},
    ),
}
"""Models by `general.architecture`."""

WITH_EXPERTS: dict[str, Architecture] = {
    "llama": Architecture(
        "mixtral",
        MOE,
        rotary=True,
        keys={"num_local_experts": "expert_count", "num_experts_per_tok": "expert_used_count"},
    ),
}
"""Those that have the name of another model, and experts besides."""

NO_PARAMETERS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")

CONFIG = {
    "hidden_size": "embedding_length",
    "num_hidden_layers": "block_count",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
    "vocab_size": "vocab_size",
}
"""Keys of config.json by those of the metadata, after the architecture."""

BLOCK_NAME = re.compile(r"blk\.(\d{1,4})\.(\w+)$")


class Gguf:
    """A reader of one GGUF file, of an architecture in the table."""

    def __init__(self, path: Path):
        self.file = GgufFile(path)
        name = self.file.metadata.get("general.architecture")
        if name not in ARCHITECTURES:
            known = ", ".join(ARCHITECTURES)
            raise GqcError(f"{path}: general.architecture is {name!r}, expected one of {known}")
        if self.file.metadata.get("split.count", 1) != 1:
            raise GqcError(f"{path}: is one of several parts; merge them with gguf-split")
        self.prefix = name
        self.architecture = ARCHITECTURES[name]
        if self.file.metadata.get(f"{name}.expert_count"):
            self.architecture = WITH_EXPERTS.get(name, self.architecture)
        self.stored: dict[str, str] = {}
        for entry in self.file.entries:
            if entry not in NO_PARAMETERS:
                self.stored[self.renamed(entry)] = entry

    @property
    def config(self) -> dict[str, Any]:
        """What the metadata says of the model, as config.json would."""
        keys, kind = CONFIG | self.architecture.keys, self.architecture.model_type
        metadata = {key: self.file.metadata.get(f"{self.prefix}.{k}") for key, k in keys.items()}
        known = {key: value for key, value in metadata.items() if value is not None}
        tied = "output.weight" not in self.file.entries
        said = self.architecture.implied | known
        return {"model_type": kind, **said, "tie_word_embeddings": tied}

    def error(self, name: str, text: str) -> GqcError:
        return GqcError(f"{self.file.path}: {name} {text}")

    def renamed(self, entry: str) -> str:
        """The name of a tensor in the dense model. Raises GqcError on unknown ones."""
        module, _, leaf = entry.rpartition(".")
        match = BLOCK_NAME.match(module)
        if match and match[2] in self.architecture.names:
            name = f"model.layers.{match[1]}.{self.architecture.names[match[2]]}"
            return name if match[2] in EXPERTS else f"{name}.{leaf}"
        if module in TOP:
            return f"{TOP[module]}.{leaf}"
        raise self.error(entry, f"is not known of a {self.prefix}; no parameter has that place")

    def names(self) -> list[str]:
        return list(self.stored)

    def origin(self, name: str) -> str:
        """The block type: `Q4_K`."""
        entry = self.file.entries[self.stored[name]]
        return BLOCK_TYPES[entry.type].name if entry.type in BLOCK_TYPES else ""

    def activation(self, name: str) -> Scheme | None:
        return None

    def input_scale(self, name: str) -> torch.Tensor | None:
        return None

    def read(self, name: str) -> torch.Tensor | BlockScaled:
        """A parameter. Raises GqcError on unknown names, types and damaged tensors."""
        if name not in self.stored:
            raise GqcError(f"no parameter is called {name!r}: names() has those that are")
        entry = self.file.entries[self.stored[name]]
        if 0 in entry.shape:
            raise self.error(self.stored[name], f"is {list(entry.shape)}: it is empty")
        if entry.type in DENSE:
            return self.dense(name, DENSE[entry.type], entry.shape)
        if entry.type not in BLOCK_TYPES:
            known = ", ".join(("F32", "F16", "BF16", *(b.name for b in BLOCK_TYPES.values())))
            raise self.error(
                self.stored[name], f"is of type {entry.type} of ggml's, expected one of {known}"
            )
        return self.blocks(name, BLOCK_TYPES[entry.type], entry.shape)

    def dense(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(shape) * dtype.itemsize
        tensor = self.file.bytes_of(self.stored[name], count).clone().view(dtype).view(shape)
        if not is_finite(tensor):
            raise self.error(self.stored[name], "holds inf or NaN; the file is damaged")
        if name.endswith("norm.weight"):
            return tensor - self.architecture.norms
        rows = self.rows(name, shape[0])
        return tensor if rows is None else tensor[rows]

    def blocks(self, name: str, block: BlockType, shape: tuple[int, ...]) -> BlockScaled:
        *leading, k = shape
        if k % block.elements or not leading:
            raise self.error(
                self.stored[name], f"is {block.name} {list(shape)}, K not of {block.elements}"
            )
        count = math.prod(shape) // block.elements
        raw = self.file.bytes_of(self.stored[name], count * block.bytes)
        raw = raw.view(*leading, k // block.elements, block.bytes)
        codes, scale, zero = (
            None if part is None else part.flatten(-2).contiguous() for part in block.parts(raw)
        )
        assert codes is not None and scale is not None
        for what, part in (("scales", scale), ("minima", zero)):
            if part is not None and not is_finite(part):
                raise self.error(self.stored[name], f"has {what} of inf or NaN; it is damaged")
        rows = self.rows(name, shape[0])
        if rows is not None:
            codes, scale = codes[rows], scale[rows]
            zero = None if zero is None else zero[rows]
        mode = "none" if zero is None else "rescale"
        extents = (*(1 for _ in leading), block.group)
        return block_scaled(block.element, extents, codes, scale, zero, mode)

    def rows(self, name: str, n: int) -> torch.Tensor | None:
        """The file's rows in the order of the dense model, for q and k where they differ."""
        keys = {"self_attn.q_proj": "head_count", "self_attn.k_proj": "head_count_kv"}
        key = next((keys[module] for module in keys if f".{module}." in name), None)
        if key is None or not self.architecture.rotary:
            return None
        default = self.file.metadata.get(f"{self.prefix}.attention.head_count")
        heads = self.file.metadata.get(f"{self.prefix}.attention.{key}", default)
        if type(heads) is not int or heads < 1 or n % (2 * heads):
            raise self.error(self.stored[name], f"has {n} rows, for {heads!r} heads")
        return torch.arange(n).view(heads, -1, 2).transpose(1, 2).flatten()
