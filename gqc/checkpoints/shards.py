"""Safetensors written tensor by tensor, so that a file may be larger than memory.

The header comes first in a file, and says where each tensor lies. Its room is reserved, filled up
with spaces as the format allows, and written last. Tensors must lie at multiples of the size of
their elements: those of whole words are written as they come; others, mostly single numbers, wait
until the end.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gqc.errors import GqcError

if TYPE_CHECKING:
    from typing import BinaryIO

DTYPES: dict[torch.dtype, str] = {
    **{torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"},
    **{torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2"},
    **{torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8"},
    **{torch.uint8: "U8", torch.uint16: "U16", torch.uint32: "U32", torch.uint64: "U64"},
    torch.bool: "BOOL",
}
"""Names that safetensors has for formats. E8M0 is written as bytes: few readers know it."""

WORD = 8
WAITING = 64 << 20
"""Bytes of tensors that wait for a shard's end, at which it ends."""
ENTRY = 160
"""Bytes that an entry of the header takes at most, besides its name."""
FORMAT = {"__metadata__": {"format": "pt"}}


def raw(tensor: torch.Tensor) -> Any:
    """The bytes of a tensor, in order, without a copy where it is contiguous."""
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy()


class Shard:
    """One file on its way. Raises GqcError where the file cannot be written."""

    def __init__(self, path: Path, header: int):
        self.path, self.room = path, -(-header // WORD) * WORD
        self.entries: dict[str, dict] = {}
        self.waiting: list[tuple[str, torch.Tensor]] = []
        self.size = self.used = 0
        try:
            self.file: BinaryIO = path.open("wb")
            self.file.seek(8 + self.room)
        except OSError as error:
            raise unwritten(path, error) from error

    def takes(self, tensors: Mapping[str, torch.Tensor], limit: int) -> bool:
        """Whether tensors fit in; any do in an empty shard."""
        if not self.entries and not self.waiting:
            return True
        entries = sum(ENTRY + len(json.dumps(name)) for name in tensors)
        waiting = sum(tensor.nbytes for _, tensor in self.waiting)
        return (
            self.size + sum(tensor.nbytes for tensor in tensors.values()) <= limit
            and self.used + entries + len(json.dumps(FORMAT)) <= self.room
            and waiting <= WAITING
        )

    def add(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Write tensors, by name, or let them wait."""
        for name, tensor in tensors.items():
            self.size += tensor.nbytes
            self.used += ENTRY + len(json.dumps(name))
            if tensor.nbytes % WORD:
                self.waiting.append((name, tensor))
            else:
                self.write(name, tensor)

    def write(self, name: str, tensor: torch.Tensor) -> None:
        start = self.file.tell() - 8 - self.room
        self.entries[name] = {
            "dtype": DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, start + tensor.nbytes],
        }
        try:
            self.file.write(raw(tensor))
        except OSError as error:
            raise unwritten(self.path, error) from error

    def close(self, final: Path) -> None:
        """Write what waits and the header, make sure it is on disk, and give it its name."""
        for name, tensor in sorted(self.waiting, key=lambda each: -each[1].element_size()):
            self.write(name, tensor)
        header = json.dumps({**FORMAT, **self.entries}).encode().ljust(self.room)
        try:
            with self.file as file:
                file.seek(0)
                file.write(len(header).to_bytes(8, "little") + header)
                file.flush()
                os.fsync(file.fileno())
            self.path.replace(final)
        except OSError as error:
            raise unwritten(self.path, error) from error


def unwritten(path: Path, error: OSError) -> GqcError:
    return GqcError(f"{path} cannot be written: {error.strerror or error}")


def write_file(path: Path, content: bytes) -> None:
    """Write a small file so that it is there whole or not at all. Raises GqcError."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise unwritten(path, error) from error
