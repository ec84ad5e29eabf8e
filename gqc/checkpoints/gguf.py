"""GGUF: a reader of the parameters of one model, by the names of transformers' dense model."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import torch

from gqc.checkpoints.files import is_finite
from gqc.checkpoints.gguf_blocks import BLOCK_TYPES, DENSE, BlockType
from gqc.checkpoints.gguf_config import check_whole, config_of
from gqc.checkpoints.gguf_file import GgufFile
from gqc.checkpoints.gguf_models import architecture_of
from gqc.checkpoints.gguf_names import NVFP4, Names
from gqc.checkpoints.weights import Weight, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import Scheme

LITTLE = "convert it where it was made, or from the model's own checkpoint, to little-endian"


class Gguf:
    """A reader of one model, of an architecture in the table, in one GGUF file or several.

    config: what the metadata says of the model, as config.json would.
    """

    def __init__(self, path: Path):
        self.file = GgufFile(path)
        self.prefix, self.architecture = architecture_of(self.file)
        about = self.file, self.prefix, self.architecture
        self.config: dict[str, Any] = config_of(*about)
        self.parameters = Names(*about, self.config).parameters
        self.told: set[str] = set()

    def check_whole(self) -> None:
        """Raises GqcError if the metadata lacks what a model cannot be made without."""
        check_whole(self.file, self.prefix, self.architecture)

    def error(self, entry: str, text: str) -> GqcError:
        return GqcError(f"{self.file.entries[entry].path}: {entry} {text}")

    def names(self) -> list[str]:
        return list(self.parameters)

    def origin(self, name: str) -> str:
        """The block types of its tensors: `Q4_K`."""
        types = (self.file.entries[entry].type for entry in self.parameters[name].entries)
        return "+".join(dict.fromkeys(BLOCK_TYPES[t].name for t in types if t in BLOCK_TYPES))

    def activation(self, name: str) -> Scheme | None:
        return None

    def input_scale(self, name: str) -> torch.Tensor | None:
        return None

    def read(self, name: str) -> Weight:
        """A parameter. Raises GqcError on unknown names, types and damaged tensors."""
        if name not in self.parameters:
            raise GqcError(f"no parameter is called {name!r}: names() has those that are")
        parameter = self.parameters[name]
        stored = [self.tensor(entry) for entry in parameter.entries]
        try:
            return parameter.make(stored)
        except (RuntimeError, IndexError, ValueError) as error:
            shapes = ", ".join(
                f"{entry} {list(self.file.entries[entry].shape)}" for entry in parameter.entries
            )
            raise GqcError(f"{self.file.path}: {shapes} do not make {name}: {error}") from error

    def tensor(self, entry: str) -> torch.Tensor | BlockScaled:
        """A tensor as it is stored, or decoded where gqc has no such format."""
        type, shape = self.file.entries[entry].type, self.file.entries[entry].shape
        if 0 in shape:
            raise self.error(entry, f"is {list(shape)}: it is empty")
        if type in DENSE:
            return self.dense(entry, DENSE[type], shape)
        if type in BLOCK_TYPES:
            return self.blocks(entry, BLOCK_TYPES[type], shape)
        return self.decoded(entry, type, shape)

    def dense(self, entry: str, dtype: torch.dtype, shape: tuple[int, ...]) -> torch.Tensor:
        count = math.prod(shape) * dtype.itemsize
        tensor = self.file.bytes_of(entry, count, dtype.itemsize).clone().view(dtype).view(shape)
        if not is_finite(tensor):
            raise self.error(entry, "holds inf or NaN; the file is damaged")
        return tensor

    def raw(
        self, entry: str, name: str, elements: int, size: int, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """The blocks of a tensor, uint8 [..., K / elements, size]."""
        *leading, k = shape
        if k % elements or not leading:
            raise self.error(entry, f"is {name} {list(shape)}, K not of {elements}")
        count = math.prod(shape) // elements
        return self.file.bytes_of(entry, count * size).view(*leading, k // elements, size)

    def blocks(self, entry: str, block: BlockType, shape: tuple[int, ...]) -> BlockScaled:
        raw = self.raw(entry, block.name, block.elements, block.bytes, shape)
        raw = self.little(entry, block, raw)
        codes, scale, zero = (
            None if part is None else part.flatten(-2).contiguous() for part in block.parts(raw)
        )
        assert codes is not None and scale is not None
        for what, part in (("scales", scale), ("minima", zero)):
            if part is not None and not is_finite(part):
                raise self.error(entry, f"has {what} of inf or NaN; it is damaged")
        mode = "none" if zero is None else "rescale"
        extents = (*(1 for _ in shape[:-1]), block.group)
        scales = self.tensor_scale(entry)
        return block_scaled(block.element, extents, codes, scale, zero, mode, scales)

    def little(self, entry: str, block: BlockType, raw: torch.Tensor) -> torch.Tensor:
        """Blocks [..., size] with their numbers little-endian."""
        if not self.file.entries[entry].big:
            return raw
        if block.halves is None:
            raise self.error(entry, f"is {block.name} in a big-endian file: {LITTLE}")
        raw = raw.clone()
        for at in block.halves:
            raw[..., at : at + 2] = raw[..., at : at + 2].flip(-1)
        return raw

    def tensor_scale(self, entry: str) -> torch.Tensor | None:
        """The scale of a whole tensor in NVFP4, which is in a tensor beside it."""
        beside = f"{entry.rpartition('.')[0]}.scale"
        if self.file.entries[entry].type != NVFP4 or beside not in self.file.entries:
            return None
        scale = self.dense(beside, torch.float32, self.file.entries[beside].shape)
        if self.file.entries[beside].type != 0 or not bool((scale == scale.flatten()[0]).all()):
            raise self.error(beside, f"is {list(scale.shape)}, expected one f32 for the tensor")
        return scale.flatten()[0]

    def decoded(self, entry: str, type: int, shape: tuple[int, ...]) -> torch.Tensor:
        """A tensor of a type that is not codes under scales, decoded by the gguf package."""
        import gguf

        if self.file.entries[entry].big:
            raise self.error(entry, f"is of type {type} in a big-endian file: {LITTLE}")
        try:
            known = gguf.GGMLQuantizationType(type)
            elements, size = gguf.GGML_QUANT_SIZES[known]
            raw = self.raw(entry, known.name, elements, size, shape).flatten(-2).numpy()
            values = torch.from_numpy(gguf.quants.dequantize(raw, known))
        except (ValueError, KeyError, NotImplementedError) as error:
            names = ", ".join(("F32", "F16", "BF16", *(b.name for b in BLOCK_TYPES.values())))
            raise self.error(
                entry, f"is of type {type} of ggml's, expected one of {names}"
            ) from error
        if not is_finite(values):
            raise self.error(entry, "has scales of inf or NaN; it is damaged")
        if known.name not in self.told:
            self.told.add(known.name)
            text = f"{self.file.path}: weights in {known.name} are decoded, and run dense"
            warnings.warn(text, stacklevel=4)
        return values
