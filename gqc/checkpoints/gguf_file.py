"""The container of GGUF, version 2 and 3: metadata, and where each tensor lies.

Layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Every length is checked against
the file before anything is read by it.
"""

from __future__ import annotations

import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gqc.errors import GqcError

MAGIC, VERSIONS, ALIGNMENT = b"GGUF", (2, 3), 32
STRING, ARRAY = 8, 9

SCALARS: dict[int, str] = {
    **{0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?"},
    **{10: "Q", 11: "q", 12: "d"},
}
"""Values of metadata of fixed size, by type: the letter that `struct` has for each."""

U32, U64 = "I", "Q"

LONGEST, DIMENSIONS = 1 << 16, 4
"""Bytes of a name, and dimensions of a tensor, at most."""

PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf$")
"""The name of one of the files that a model was split into."""


@dataclass(frozen=True)
class Entry:
    """A tensor: its shape, slowest dimension first, its ggml type, where it begins, and whether
    numbers in it are big-endian."""

    shape: tuple[int, ...]
    type: int
    start: int
    path: Path
    big: bool = False


@dataclass(frozen=True)
class Texts:
    """An array of strings in the metadata, which are not kept."""

    count: int


class Cursor:
    """Reads a file from its beginning. Raises GqcError where it ends too early."""

    def __init__(self, path: Path, data: mmap.mmap):
        self.path, self.data, self.at = path, data, 0
        self.order = "<"
        """Of bytes in numbers, as `struct` says it."""

    def error(self, text: str) -> GqcError:
        return GqcError(f"{self.path}: byte {self.at}: {text}")

    def skip(self, count: int, what: str) -> int:
        """Go on by so many bytes; where they began."""
        start = self.at
        if count > len(self.data) - start:
            raise self.error(f"the file ends in {what} of {count} bytes; fetch it again")
        self.at += count
        return start

    def scalars(self, letter: str, count: int, what: str) -> tuple[Any, ...]:
        start = self.skip(count * struct.calcsize(f"={letter}"), what)
        return struct.unpack_from(f"{self.order}{count}{letter}", self.data, start)

    def scalar(self, letter: str, what: str) -> Any:
        return self.scalars(letter, 1, what)[0]

    def string(self, what: str) -> str:
        length = self.scalar(U64, what)
        start = self.skip(length, what)
        return self.data[start : self.at].decode("utf-8", "replace")

    def name(self, what: str) -> str:
        length = self.scalar(U64, what)
        self.at -= 8
        if length > LONGEST:
            raise self.error(f"{what} of {length} bytes, expected at most {LONGEST}")
        return self.string(what)

    def value(self, type: int, key: str) -> Any:
        """A value of metadata: a scalar, a string, a tuple of scalars, or `Texts`."""
        if type in SCALARS:
            return self.scalar(SCALARS[type], key)
        if type == STRING:
            return self.string(key)
        if type != ARRAY:
            raise self.error(f"{key} has type {type}, which GGUF does not have")
        inner, count = self.scalar(U32, key), self.scalar(U64, key)
        if inner in SCALARS:
            return self.scalars(SCALARS[inner], count, key)
        if inner != STRING:
            raise self.error(f"{key} is an array of type {inner}; expected numbers or strings")
        for _ in range(count):
            self.skip(self.scalar(U64, key), key)
        return Texts(count)


class GgufPart:
    """One file: its metadata and its tensors. Raises GqcError on damaged files."""

    def __init__(self, path: Path):
        self.path = path
        size = path.stat().st_size
        if size < 24:
            raise GqcError(f"{path}: {size} bytes are no GGUF file")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            cursor = Cursor(path, data)
            tensors, keys = self.header(cursor)
            self.metadata = self.read_metadata(cursor, keys)
            self.entries = self.read_entries(cursor, tensors)

    def header(self, cursor: Cursor) -> tuple[int, int]:
        """Number of tensors, and of entries of metadata."""
        if cursor.data[:4] != MAGIC:
            raise GqcError(f"{self.path}: begins with {cursor.data[:4]!r}, expected {MAGIC!r}")
        cursor.at = 4
        version = cursor.scalar(U32, "version")
        if (swapped := int.from_bytes(version.to_bytes(4, "little"), "big")) in VERSIONS:
            version, cursor.order = swapped, ">"
        if version not in VERSIONS:
            raise GqcError(f"{self.path}: GGUF version {version}, expected one of {VERSIONS}")
        return cursor.scalar(U64, "number of tensors"), cursor.scalar(U64, "number of keys")

    def read_metadata(self, cursor: Cursor, count: int) -> dict[str, Any]:
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = cursor.name("a key")
            if key in metadata:
                raise cursor.error(f"{key} is there twice")
            metadata[key] = cursor.value(cursor.scalar(U32, key), key)
        return metadata

    def read_entries(self, cursor: Cursor, count: int) -> dict[str, Entry]:
        found: dict[str, tuple[tuple[int, ...], int, int]] = {}
        for _ in range(count):
            name = cursor.name("the name of a tensor")
            rank = cursor.scalar(U32, name)
            if name in found or not 1 <= rank <= DIMENSIONS:
                raise cursor.error(f"{name} has {rank} dimensions, or is there twice")
            dims = cursor.scalars(U64, rank, name)
            found[name] = dims[::-1], cursor.scalar(U32, name), cursor.scalar(U64, name)
        start = self.aligned(cursor.at)
        return {
            name: Entry(shape, type, start + offset, self.path, cursor.order == ">")
            for name, (shape, type, offset) in found.items()
        }

    def aligned(self, position: int) -> int:
        alignment = self.metadata.get("general.alignment", ALIGNMENT)
        if type(alignment) is not int or alignment < 1:
            raise GqcError(f"{self.path}: general.alignment is {alignment!r}")
        return -(-position // alignment) * alignment


class GgufFile:
    """The metadata and the tensors of a file, or of all files that a model was split into.

    path: any one of them. Raises GqcError on damaged files, missing parts, and no tensors.
    """

    def __init__(self, path: Path):
        part = GgufPart(path)
        count = part.metadata.get("split.count", 1)
        paths = [path] if count in (0, 1) else parts_of(path, count)
        self.path = paths[0]
        parts = [part if each == path else GgufPart(each) for each in paths]
        self.metadata = parts[0].metadata
        self.entries: dict[str, Entry] = {}
        for number, each in enumerate(parts):
            said = (each.metadata.get("split.no", 0), each.metadata.get("split.count", 1))
            if len(parts) > 1 and said != (number, count):
                raise GqcError(f"{each.path}: is part {said[0]} of {said[1]}, not of {count}")
            for name in each.entries:
                if name in self.entries:
                    raise GqcError(f"{each.path}: {name} is in {self.entries[name].path.name} too")
            self.entries |= each.entries
        total = self.metadata.get("split.tensors.count", len(self.entries))
        if len(parts) > 1 and total != len(self.entries):
            raise GqcError(f"{self.path}: {len(self.entries)} tensors in all parts, not {total}")
        if not self.entries:
            raise GqcError(f"{self.path}: holds no tensors; it is of a tokenizer alone")

    def bytes_of(self, name: str, count: int, width: int = 1) -> torch.Tensor:
        """The bytes of a tensor, uint8 [count], mapped; numbers of `width` bytes are little-endian,
        whatever the file's are. Raises GqcError if the file ends before.
        """
        entry = self.entries[name]
        size, end = entry.path.stat().st_size, entry.start + count
        if end > size:
            raise GqcError(
                f"{entry.path}: {name} ends at byte {end}, the file at {size}; fetch it again"
            )
        mapped = torch.from_file(str(entry.path), False, size, dtype=torch.uint8)
        found = mapped[entry.start : end]
        return found.view(-1, width).flip(1).flatten() if entry.big and width > 1 else found


def parts_of(path: Path, count: Any) -> list[Path]:
    """All files of a split model, in order. Raises GqcError on missing ones."""
    match = PART.match(path.name)
    if match is None or type(count) is not int or int(match[3]) != count:
        raise GqcError(
            f"{path}: is one of {count!r} parts, whose names end in -00001-of-{count:05}.gguf; "
            "name them so, or merge them with llama-gguf-split"
        )
    names = [f"{match[1]}-{number:05}-of-{count:05}.gguf" for number in range(1, count + 1)]
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        listed = ", ".join(missing[:5]) + (" …" if len(missing) > 5 else "")
        raise GqcError(f"{path}: missing {listed}; fetch all {count} parts")
    return [path.parent / name for name in names]


def is_gguf(path: Path) -> bool:
    """Whether a file begins as GGUF does, as some that are stored by what they hold."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


PROJECTORS = "clip"
"""The architecture of files that lie beside a model and make images into its inputs."""


def only_model(paths: list[Path]) -> Path:
    """The one model of some files, or its first part. Raises GqcError if there are several."""
    if len(paths) == 1:
        return paths[0]
    models: dict[str, Path] = {}
    for path in paths:
        if GgufPart(path).metadata.get("general.architecture") != PROJECTORS:
            match = PART.match(path.name)
            models.setdefault(path.name if match is None else f"{match[1]} of {match[3]}", path)
    if len(models) != 1:
        names = ", ".join(path.name for path in models.values())
        raise GqcError(f"{paths[0].parent}: {len(models)} GGUF files; open one of them: {names}")
    return next(iter(models.values()))
