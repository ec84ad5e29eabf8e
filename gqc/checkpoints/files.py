"""The files of a checkpoint: its JSON, and the safetensors that hold its tensors."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError, safe_open

from gqc.errors import GqcError

if TYPE_CHECKING:
    import torch

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Files that run code when they are opened."""

FLOATS = ("F64", "F32", "F16", "BF16")
DTYPES = (
    *FLOATS,
    *("F8_E4M3", "F8_E5M2", "F8_E8M0"),
    *("I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"),
)
"""Formats of tensors that are read, as safetensors calls them."""

WIDTHS = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4} | dict.fromkeys(
    ("F16", "BF16", "I16", "U16"), 2
)
"""Bytes of an element, of formats where it is not one."""

Value = TypeVar("Value")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises GqcError if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise GqcError(f"{path}: no readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise GqcError(f"{path}: a JSON object is expected, not {type(value).__name__}")
    return value


def option(
    config: Mapping[str, Any], key: str, kind: type[Value], default: Value | None = None
) -> Value:
    """A value of a quantization config, the default where it is absent or null.

    Raises GqcError if it is not of that kind, or absent without a default.
    """
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise GqcError(f"quantization config: {key} is {value!r}, expected {kind.__name__}")
    return value


def safetensors_of(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """The safetensors of a folder, and of which each tensor is in, if an index says so.

    Raises GqcError on pickles, indices that leave the folder, missing shards, and no files.
    """
    index = folder / INDEX
    if not index.is_file():
        found = sorted(folder.glob("*.safetensors"))
        single = [path for path in found if path.name == SINGLE] or found
        if len(single) != 1:
            raise GqcError(f"{folder}: {no_single_file(folder, found)}")
        return single, {}
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(p, str) for p in places.values()):
        raise GqcError(f"{index}: weight_map must give the file of each tensor")
    names = sorted(set(places.values()))
    for name in names:
        # No folders, no drives, nothing but a plain file beside the index.
        if not name.endswith(".safetensors") or set(name) & set("/\\:\0") or name.startswith("."):
            raise GqcError(f"{index}: {name!r} is not the name of a safetensors file beside it")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise GqcError(f"{index}: missing {', '.join(missing)}; fetch all {len(names)} shards")
    return [folder / name for name in names], places


def no_single_file(folder: Path, found: list[Path]) -> str:
    if found:
        return f"{len(found)} safetensors files, none called {SINGLE}, and no {INDEX}"
    if pickles := [p.name for p in sorted(folder.iterdir()) if p.suffix in PICKLES]:
        return f"{pickles[0]} is a pickle, which runs code when opened: convert it to safetensors"
    return f"neither {SINGLE} nor {INDEX} nor a .gguf"


@dataclass(frozen=True)
class Spec:
    """Format (a name of safetensors), shape and file of one tensor."""

    dtype: str
    shape: tuple[int, ...]
    file: Path

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * WIDTHS.get(self.dtype, 1)

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


BYTES_OF_ENTRY = 4096
"""What is read in about the time that one entry of a header takes when a file is opened."""


@dataclass
class Handle:
    """An open file, and how many bytes are to be read before it is opened anew."""

    path: Path
    file: Any
    left: int


class Tensors:
    """The tensors of some safetensors files, mapped, and read one at a time.

    Raises GqcError on files that are damaged, that contradict their index, or hold a tensor twice.
    """

    def __init__(self, paths: Iterable[Path], places: Mapping[str, str] | None = None):
        self.paths: list[Path] = []
        self.specs: dict[str, Spec] = {}
        self.metadata: dict[str, str] = {}
        self.entries: Counter[Path] = Counter()
        self.handle: Handle | None = None
        for path in paths:
            file = open_file(path)
            self.paths.append(path)
            self.metadata.update(file.metadata() or {})
            for name in file.keys():  # noqa: SIM118, it is no mapping
                if name in self.specs:
                    raise GqcError(f"{path}: {name} is in {self.specs[name].file.name} too")
                entry = file.get_slice(name)
                self.specs[name] = Spec(entry.get_dtype(), tuple(entry.get_shape()), path)
                self.entries[path] += 1
        for name, place in (places or {}).items():
            if name not in self.specs or self.specs[name].file.name != place:
                raise GqcError(f"the index has {name} in {place}, which does not hold it")

    def error(self, name: str, text: str) -> GqcError:
        """The error to raise about a tensor."""
        file = self.specs[name].file if name in self.specs else next(iter(self.paths), "no file")
        return GqcError(f"{file}: {name} {text}")

    def opened(self, spec: Spec) -> Any:
        """The file of a tensor that is to be read.

        It is opened anew, so that what was read of it before is in memory no longer, as soon as
        that was so much that reading it took about as long as opening does.
        """
        handle = self.handle
        if handle is None or handle.path != spec.file or handle.left < 0:
            entries = self.entries[spec.file]
            handle = Handle(spec.file, open_file(spec.file), entries * BYTES_OF_ENTRY)
            self.handle = handle
        handle.left -= spec.bytes
        return handle.file

    def read(self, name: str, bits: bool = False) -> torch.Tensor:
        """A tensor. Raises GqcError if it is absent, of unknown format, or holds inf or NaN.

        `bits`: what it holds are no numbers, so anything goes.
        """
        if name not in self.specs:
            raise self.error(name, "is missing")
        spec = self.specs[name]
        if spec.dtype not in DTYPES:
            raise self.error(name, f"is {spec}, expected one of {', '.join(DTYPES)}")
        try:
            tensor = self.opened(spec).get_tensor(name)
        except (SafetensorError, RuntimeError, ValueError) as error:
            raise self.error(name, f"cannot be read: {error}") from error
        if tuple(tensor.shape) != spec.shape:
            raise self.error(name, f"was {spec} when the file was opened: it has changed")
        if not bits and not is_finite(tensor):
            raise self.error(name, f"({spec}) holds inf or NaN; the file is damaged")
        return tensor


def open_file(path: Path) -> Any:
    try:
        return safe_open(path, "pt")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise GqcError(f"{path}: no readable safetensors file: {error}") from error


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether all elements are numbers; integers are."""
    import torch

    specials = {  # bits to look at, and their least value that is no number
        torch.float8_e8m0fnu: (0xFF, 0xFF),
        torch.float8_e4m3fn: (0x7F, 0x7F),
        torch.float8_e5m2: (0x7F, 0x7C),
    }
    ends: list[torch.Tensor] = []
    for part in tensor.flatten().split(1 << 22):  # temporaries are as wide as what is looked at
        if tensor.dtype in specials:
            mask, least = specials[tensor.dtype]
            if ((part.view(torch.uint8) & mask) >= least).any():
                return False
        elif tensor.is_floating_point() and part.numel():
            # A NaN is the least and the greatest. Many times faster than torch.isfinite of all.
            ends.extend(part.aminmax())
    return not ends or bool(torch.isfinite(torch.stack(ends)).all())
