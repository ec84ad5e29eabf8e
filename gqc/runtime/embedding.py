"""An embedding whose table is quantized: the rows that are looked up are decoded, no others."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import Tensor, nn

from gqc.checkpoints.bits import pack, unpack
from gqc.dialects.text import parse_block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.runtime.weight_handle import QuantizedWeight

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

torch.library.define(
    "gqc::embedding",
    "(Tensor indices, Tensor codes, Tensor scale, Tensor? zero, Tensor? tensor_scale, str type,"
    " int columns, ScalarType dtype) -> Tensor",
)


@lru_cache
def parsed(text: str) -> BlockScaledType:
    return parse_block_scaled(text)


@torch.library.impl("gqc::embedding", "default")
def embedding(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    tensor_scale: Tensor | None,
    type: str,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    """Rows [..., K] of a table at `indices`, integers of any shape, computed in float32.

    codes: bit streams, uint8 [V, ceil(K·b/8)]. scale, and zero, if any: [V, G]. type: parameters of
    the table's block-scaled type. Raises IndexError on indices beyond the table.
    """
    rows = indices.reshape(-1)
    type_ = parsed(type)
    taken = unpack(codes[rows].cpu(), type_.format.bits, columns).to(codes.device)
    if type_.format.is_integer and type_.format.signed:
        half = 1 << type_.format.bits - 1
        taken = ((taken ^ half).to(torch.int16) - half).to(torch.int8)
    zero = None if zero is None else zero[rows]
    part = BlockScaled(type_, taken, scale[rows], zero, tensor_scale)
    return part.dequantize(torch.float32).to(dtype).view(*indices.shape, columns)


@torch.library.register_fake("gqc::embedding")
def embedding_fake(
    indices: Tensor,
    codes: Tensor,
    scale: Tensor,
    zero: Tensor | None,
    tensor_scale: Tensor | None,
    type: str,
    columns: int,
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty((*indices.shape, columns), dtype=dtype)


def takes(module: nn.Module) -> bool:
    """Whether a module is an embedding that only looks rows up."""
    return (
        isinstance(module, nn.Embedding)
        and type(module).forward is nn.Embedding.forward
        and module.max_norm is None
    )


class QuantizedEmbedding(nn.Module):
    """Looks up rows of a quantized table [V, K], in blocks of one row, as `nn.Embedding` does.

    `weight` stands for the dense table, which is decoded where its values are read.
    """

    def __init__(self, table: BlockScaled, like: nn.Embedding, dtype: torch.dtype):
        super().__init__()
        self.num_embeddings, self.embedding_dim = table.codes.shape
        self.padding_idx = like.padding_idx
        self.format = table.type.text
        self.dtype = dtype
        bits = table.type.format.bits
        self.register_buffer("codes", pack(table.codes.cpu(), bits).to(table.codes.device))
        self.register_buffer("scale", table.scale)
        self.register_buffer("zero", table.zero)
        self.register_buffer("tensor_scale", table.tensor_scale)

    def forward(self, input: Tensor) -> Tensor:
        parts = self.codes, self.scale, self.zero, self.tensor_scale
        return torch.ops.gqc.embedding(input, *parts, self.format, self.embedding_dim, self.dtype)

    @property
    def weight(self) -> Tensor:
        shape = self.num_embeddings, self.embedding_dim
        return QuantizedWeight(self, shape, self.dtype, self.codes.device)  # pyright: ignore

    def decoded(self) -> Tensor:
        """The table, dense."""
        return self(torch.arange(self.num_embeddings, device=self.codes.device))  # pyright: ignore

    def refuse_write(self) -> NoReturn:
        raise GqcError("the table of an embedding is quantized: compile a model with other weights")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Move the table, which keeps its formats; the dtype of what is looked up follows."""
        for name, part in self._buffers.items():
            if part is not None:
                new = fn(part)
                self._buffers[name] = new if new.dtype == part.dtype else part.to(new.device)
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.format}"
