"""Parts that are done, on disk: what a run that was interrupted goes on from.

A folder holds `run.json`, by what a run is known, and a file of safetensors for each part. Files
get their names when they are complete.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.utils import _pytree as pytree

from gqc.checkpoints.files import Tensors
from gqc.checkpoints.gqc import Gqc
from gqc.checkpoints.write_gqc import GqcWriter
from gqc.checkpoints.writer import form_of
from gqc.errors import GqcError
from gqc.quantization.layers import Layer
from gqc.quantization.part import Result
from gqc.quantization.quantized import Fact

STATE = "run.json"
QUANTIZATION, FACTS = "quantization_config", "facts"
"""Keys of the metadata of a part."""
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
        """Write a part, weights in gqc's own format. Raises GqcError if it cannot be written."""
        known = {name: form_of(weight, None) for name, weight in result.weights.items()}
        writer = GqcWriter({name: form for name, form in known.items() if form is not None})
        tensors = dict(result.dense)
        for name, weight in result.weights.items():
            tensors |= writer.parts(name, weight, result.input_scales.get(name))
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        facts = [asdict(fact) for fact in result.facts]
        said = {QUANTIZATION: json.dumps(writer.quantization([])), FACTS: json.dumps(facts)}
        try:
            self.write(self.path(number).name, lambda path: save_file(tensors, path, said))
        except OSError as error:
            raise GqcError(f"cannot write {self.path(number)}: {error}") from error

    def load(self, number: int) -> Result | None:
        """A part that is done, None if it is not. Raises GqcError on a damaged file."""
        path = self.path(number)
        if not path.exists():
            return None
        try:
            tensors = Tensors([path])
            said = {key: json.loads(tensors.metadata[key]) for key in (QUANTIZATION, FACTS)}
            reader = Gqc(tensors, said[QUANTIZATION], {})
            dense = [name for name in reader.names() if name not in reader.forms]
            scales = {name: reader.input_scale(name) for name in reader.forms}
            return Result(
                {name: reader.read(name) for name in reader.forms},
                {name: scale for name, scale in scales.items() if scale is not None},
                {name: tensors.read(name) for name in dense},
                [Fact(**fact) for fact in said[FACTS]],
            )
        except (GqcError, KeyError, TypeError, ValueError) as error:
            raise GqcError(f"{path} is damaged: {error}; remove it to quantize it anew") from error
