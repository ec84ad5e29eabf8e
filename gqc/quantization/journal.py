"""Parts that are done, on disk: what a run that was interrupted goes on from.

A folder holds `run.json`, by what a run is known, and a file of safetensors for each part. Files
get their names when they are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.utils import _pytree as pytree

from gqc.checkpoints.weights import Rotated, Transposed, Weight, parse_type
from gqc.dialects.torch_types import DTYPES
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.quantization.layers import Layer
from gqc.quantization.part import Result
from gqc.quantization.quantized import Fact

STATE = "run.json"
Fingerprint = dict[str, Any]


def fingerprint(
    model: nn.Module, layers: Sequence[Layer], inputs: Sequence[Any], seed: int
) -> Fingerprint:
    """What two runs have in common exactly if they give the same."""
    schemes = {layer.path: str(layer.scheme) for layer in layers if layer.scheme is not None}
    state = model.state_dict()
    return {
        "gqc": version("gqc"),
        "model": digest([(name, tensor) for name, tensor in state.items()]),
        "scheme": hashlib.sha256(json.dumps(schemes).encode()).hexdigest(),
        "calibration": digest(inputs),
        "seed": seed,
    }


def digest(values: Any) -> str:
    """SHA-256 of a tree of tensors and plain values."""
    leaves, spec = pytree.tree_flatten(values)
    found = hashlib.sha256(str(spec).encode())
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            found.update(f"{leaf.dtype} {list(leaf.shape)}".encode())
            data = leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
            found.update(data.numpy().data)
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


class Journal:
    """The parts of one run in a folder.

    Raises GqcError on a folder that holds another run, or anything else, and where a file cannot be
    written or is damaged.
    """

    def __init__(self, folder: str | Path, run: Fingerprint):
        self.folder = Path(folder)
        state = self.folder / STATE
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if state.is_file():
                self.refuse_other(json.loads(state.read_text(encoding="utf-8")), run)
            elif any(p for p in self.folder.iterdir() if not p.name.endswith(".tmp")):
                raise GqcError(f"{folder} is not empty, and no interrupted run: give a new folder")
            else:
                self.write(STATE, lambda path: path.write_text(json.dumps(run), encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise GqcError(f"cannot resume in {folder}: {error}") from error

    def refuse_other(self, state: Any, run: Fingerprint) -> None:
        if differs := [
            key for key in run if not isinstance(state, dict) or state.get(key) != run[key]
        ]:
            raise GqcError(
                f"{self.folder} holds an interrupted run of another {', '.join(differs)}: run the "
                "same again to go on with it, or give another folder"
            )

    def write(self, name: str, make: Callable[[Path], Any]) -> None:
        """Let a file be made, and give it its name once it is on disk."""
        path = self.folder / f"{name}.tmp"
        make(path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        os.replace(path, self.folder / name)

    def path(self, number: int) -> Path:
        return self.folder / f"part-{number:05}.safetensors"

    def save(self, number: int, result: Result) -> None:
        """Write a part. Raises GqcError if it cannot be written."""
        tensors: dict[str, torch.Tensor] = {}
        forms = {name: pack(name, weight, tensors) for name, weight in result.weights.items()}
        tensors |= {f"input_scale {name}": scale for name, scale in result.input_scales.items()}
        tensors |= {f"dense {name}": tensor for name, tensor in result.dense.items()}
        said = {"forms": forms, "facts": [asdict(fact) for fact in result.facts]}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        try:
            self.write(
                self.path(number).name,
                lambda path: save_file(tensors, path, {"gqc": json.dumps(said)}),
            )
        except OSError as error:
            raise GqcError(f"cannot write {self.path(number)}: {error}") from error

    def load(self, number: int) -> Result | None:
        """A part that is done, None if it is not. Raises GqcError on a damaged file."""
        path = self.path(number)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                said = json.loads(file.metadata()["gqc"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Result(
                {name: unpack(name, form, tensors) for name, form in said["forms"].items()},
                named(tensors, "input_scale "),
                named(tensors, "dense "),
                [Fact(**fact) for fact in said["facts"]],
            )
        except Exception as error:  # whatever the library makes of a damaged file
            raise GqcError(f"{path} is damaged: {error}; remove it to quantize it anew") from error


def named(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    """The tensors whose names begin with a prefix, without it."""
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


PARTS = ("codes", "scale", "zero", "tensor_scale")


def pack(name: str, weight: Weight, tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The form of a quantized weight; its tensors are added to `tensors`."""
    form: dict[str, Any] = {"transposed": isinstance(weight, Transposed), "rotated": 0}
    if isinstance(weight, Rotated):
        form["rotated"] = weight.block
    codes = weight.weight if isinstance(weight, Rotated | Transposed) else weight
    assert isinstance(codes, BlockScaled)
    form["type"] = codes.type.text
    for part in PARTS:
        if (tensor := getattr(codes, part)) is not None:
            tensors[f"{part} {name}"] = tensor.view(torch.uint8) if part == "scale" else tensor
    return form


def unpack(name: str, form: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Weight:
    """The weight that `pack` took apart."""
    type_ = parse_type(form["type"])
    codes, scale, zero, whole = (tensors.get(f"{part} {name}") for part in PARTS)
    assert codes is not None and scale is not None
    weight = BlockScaled(type_, codes, scale.view(DTYPES[type_.scale]), zero, whole)
    if form["transposed"]:
        return Transposed(weight)
    return Rotated(weight, form["rotated"]) if form["rotated"] else weight
