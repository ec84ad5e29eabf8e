"""The container of GGUF, version 2 and 3: metadata, and where each tensor lies.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is checked against
the file before anything is read by it.
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gqc.errors import GqcError

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
STRING, ARRAY = 8, 9

SCALARS: dict[int, struct.Struct] = {
    code: struct.Struct(f"<{letter}")
    for code, letter in {
        **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
        **{10: "Q", 11: "q", 12: "d"},
    }.items()
}
"""Values of metadata of fixed size, by type."""

U32, U64 = SCALARS[4], SCALARS[10]

LONGEST, DIMENSIONS = 1 << 16, 4
"""Bytes of a name, and dimensions of a tensor, at most."""


@dataclass(frozen=True)
class Entry:
    """A tensor: its shape, slowest dimension first, its ggml type, its place after the header."""

    shape: tuple[int, ...]
    type: int
    offset: int


class Cursor:
    """Reads a file from its beginning. Raises GqcError where it ends too early."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0

    def error(self, text: str) -> GqcError:
        return GqcError(f"{self.path}: byte {self.at}: {text}")

    def skip(self, count: int, what: str) -> int:
        """Go on by so many bytes; where they began."""
        start = self.at
        if count > len(self.data) - start:
            raise self.error(f"the file ends in {what} of {count} bytes; fetch it again")
        self.at += count
        return start

    def scalar(self, form: struct.Struct, what: str) -> Any:
        return form.unpack_from(self.data, self.skip(form.size, what))[0]

    def string(self, what: str) -> str:
        length = self.scalar(U64, what)
        start = self.skip(length, what)
        return self.data[start : self.at].decode("utf-8", "replace")

    def name(self, what: str) -> str:
        length = U64.unpack_from(self.data, self.skip(8, what))[0]
        self.at -= 8
        if length > LONGEST:
            raise self.error(f"{what} of {length} bytes, expected at most {LONGEST}")
        return self.string(what)

    def value(self, type: int, key: str) -> Any:
        """A value of metadata; of an array only the number of its values."""
        if type in SCALARS:
            return self.scalar(SCALARS[type], key)
        if type == STRING:
            return self.string(key)
        if type != ARRAY:
            raise self.error(f"{key} has type {type}, which GGUF does not have")
        inner, count = self.scalar(U32, key), self.scalar(U64, key)
        if inner in SCALARS:
            self.skip(count * SCALARS[inner].size, key)
        elif inner == STRING:
            for _ in range(count):
                self.skip(self.scalar(U64, key), key)
        else:
            raise self.error(f"{key} is an array of type {inner}; expected numbers or strings")
        return count


class GgufFile:
    """A file's metadata (arrays by their lengths) and tensors. Raises GqcError on damaged files."""

    def __init__(self, path: Path):
        self.path = path
        self.size = path.stat().st_size
        if self.size < 24:
            raise GqcError(f"{path}: {self.size} bytes are no GGUF file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            cursor = Cursor(path, data)
            counts = self.header(cursor)
            self.metadata = self.read_metadata(cursor, counts[1])
            self.entries = self.read_entries(cursor, counts[0])
            self.start = self.aligned(cursor.at)

    def header(self, cursor: Cursor) -> tuple[int, int]:
        """Number of tensors, and of entries of metadata."""
        if cursor.data[:4] != MAGIC:
            raise GqcError(f"{self.path}: begins with {cursor.data[:4]!r}, expected {MAGIC!r}")
        cursor.at = 4
        version = cursor.scalar(U32, "version")
        if version not in VERSIONS:
            raise GqcError(f"{self.path}: GGUF version {version}, expected one of {VERSIONS}")
        return cursor.scalar(U64, "number of tensors"), cursor.scalar(U64, "number of keys")

    def read_metadata(self, cursor: Cursor, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = cursor.name("a key")
            metadata[key] = cursor.value(cursor.scalar(U32, key), key)
        return metadata

    def read_entries(self, cursor: Cursor, count: int) -> dict[str, Entry]:
        entries: dict[str, Entry] = {}
        for _ in range(count):
            name = cursor.name("the name of a tensor")
            rank = cursor.scalar(U32, name)
            if name in entries or not 1 <= rank <= DIMENSIONS:
                raise cursor.error(f"{name} has {rank} dimensions, or is there twice")
            dims = [cursor.scalar(U64, name) for _ in range(rank)]
            type, offset = cursor.scalar(U32, name), cursor.scalar(U64, name)
            entries[name] = Entry(tuple(reversed(dims)), type, offset)
        return entries

    def aligned(self, position: int) -> int:
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise GqcError(f"{self.path}: general.alignment is {alignment!r}")
        return -(-position // alignment) * alignment

    def bytes_of(self, name: str, count: int) -> torch.Tensor:
        """The bytes of a tensor, uint8 [count], mapped. Raises GqcError if the file ends before."""
        start = self.start + self.entries[name].offset
        if start + count > self.size:
            raise GqcError(
                f"{self.path}: {name} ends at byte {start + count}, the file at {self.size}; "
                "fetch it again"
            )
        mapped = torch.from_file(str(self.path), False, self.size, dtype=torch.uint8)
        return mapped[start : start + count]
