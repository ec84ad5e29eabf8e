"""Open a checkpoint of any known format, and read its parameters one by one."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gqc.checkpoints.auto_round import auto_round
from gqc.checkpoints.awq import Awq
from gqc.checkpoints.bitsandbytes import Bitsandbytes
from gqc.checkpoints.compressed_tensors import CompressedTensors
from gqc.checkpoints.configs import quantization_of, refuse_unsaid, unknown_method
from gqc.checkpoints.files import PICKLES, Tensors, read_json, safetensors_of
from gqc.checkpoints.fp8 import Fp8
from gqc.checkpoints.gguf import Gguf
from gqc.checkpoints.gguf_file import is_gguf, only_model
from gqc.checkpoints.gpt_oss import GptOss
from gqc.checkpoints.gptq import Gptq
from gqc.checkpoints.gqc import Gqc
from gqc.checkpoints.hqq import Hqq
from gqc.checkpoints.modelopt import Modelopt
from gqc.checkpoints.quark import Quark
from gqc.checkpoints.reader import Reader
from gqc.checkpoints.source import Origin
from gqc.checkpoints.torchao import Torchao
from gqc.errors import GqcError

if TYPE_CHECKING:
    import torch

    from gqc.checkpoints.weights import Weight
    from gqc.schemes import Scheme

CONFIG = "config.json"

TENSOR_NAMES = "tensor_names"
"""Entry of torchao in the metadata of its safetensors."""


@dataclass(frozen=True)
class Evidence:
    """What tells formats apart: the quantization config, empty without one, and the tensors."""

    quantization: dict[str, Any]
    tensors: Tensors

    @property
    def method(self) -> Any:
        return self.quantization.get("quant_method")


@dataclass(frozen=True)
class Format:
    """One row: whether a checkpoint of safetensors is of this format, and what reads it."""

    detect: Callable[[Evidence], bool]
    reader: Callable[[Tensors, dict[str, Any], dict[str, Any]], Reader]


def method(*names: str) -> Callable[[Evidence], bool]:
    """Whether `quant_method` of the quantization config is one of some names."""
    return lambda evidence: evidence.method in names


def is_torchao(evidence: Evidence) -> bool:
    return evidence.method == "torchao" or TENSOR_NAMES in evidence.tensors.metadata


def is_modelopt(evidence: Evidence) -> bool:
    """Its methods are `modelopt` and `modelopt_…`; some of its configs name only the producer."""
    said = evidence.quantization
    producer = said.get("producer")
    names = (said.get("quant_library"), producer.get("name") if isinstance(producer, dict) else "")
    method = evidence.method or next(filter(None, names), "")
    return isinstance(method, str) and re.fullmatch(r"modelopt(_\w+)?", method) is not None


FORMATS: dict[str, Format] = {
    "gqc": Format(method("gqc"), Gqc),
    "awq": Format(method("awq"), Awq),
    "gptq": Format(method("gptq"), Gptq),
    "auto-round": Format(method("auto-round", "auto_round", "intel/auto-round"), auto_round),
    "hqq": Format(method("hqq"), Hqq),
    "compressed-tensors": Format(method("compressed-tensors"), CompressedTensors),
    "modelopt": Format(is_modelopt, Modelopt),
    "fp8": Format(method("fp8", "fbgemm_fp8"), Fp8),
    "quark": Format(method("quark"), Quark),
    "bitsandbytes": Format(method("bitsandbytes"), Bitsandbytes),
    "gpt-oss": Format(method("mxfp4"), GptOss),
    "torchao": Format(is_torchao, Torchao),
    "dense": Format(lambda evidence: not evidence.quantization, Reader),
}
"""Formats in safetensors, the first that is detected counts."""


class Checkpoint:
    """A model on disk. Tensors are mapped, and read when they are asked for.

    format: a name of `FORMATS`, or `gguf`. config: the model's `config.json`, empty if there is
    none; of GGUF, what its metadata says.
    """

    def __init__(self, path: Path, format: str, config: dict[str, Any], reader: Reader | Gguf):
        self.path, self.format, self.config, self.reader = path, format, config, reader

    def names(self) -> list[str]:
        """Names of the parameters, as the dense model has them (`….down_proj.weight`)."""
        return self.reader.names()

    def read(self, name: str) -> Weight:
        """A parameter: a block-scaled weight [N, K] exactly as stored, or a dense tensor.

        A weight in blocks of columns that lie apart is `Permuted`, one for scaled inputs
        `Prescaled`, one of experts that the model has the other way round `Transposed`;
        `weights.dense` is the dense parameter of each. Raises GqcError, with the file, the tensor
        and what was expected, on unknown names, on shapes and formats that contradict the config or
        each other, and on inf and NaN.
        """
        return self.reader.read(name)

    def origin(self, name: str) -> Origin:
        """What quantized the weight, or else the format that it is stored in."""
        return Origin(self.reader.origin(name) or self.format)

    def activation(self, name: str) -> Scheme | None:
        """How the input of the layer with this weight is quantized, None where it is not."""
        return self.reader.activation(name)

    def input_scale(self, name: str) -> torch.Tensor | None:
        """The calibrated tensor scale of that input, a float32 scalar, where its scheme is static.

        It is a factor, as `BlockScaled.tensor_scale` is: amax / 2688 in NVFP4.
        """
        return self.reader.input_scale(name)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a folder with a config and safetensors or with GGUF, or one file of either.

    Reads headers only. Nothing in the files is executed, and pickles are not opened. Raises
    GqcError on what is damaged, incomplete or unknown.
    """
    path = Path(path)
    if (gguf := gguf_in(path)) is not None:
        reader = Gguf(gguf)
        return Checkpoint(path, "gguf", reader.config, reader)
    if path.suffix in PICKLES:
        raise GqcError(f"{path} is a pickle, which runs code when opened: convert it")
    if path.is_dir():
        paths, places = safetensors_of(path)
    elif path.is_file():
        paths, places = [path], {}
    else:
        raise GqcError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    config = read_json(folder / CONFIG) if (folder / CONFIG).is_file() else {}
    evidence = Evidence(quantization_of(folder, config), Tensors(paths, places))
    if not evidence.quantization and not is_torchao(evidence):
        refuse_unsaid(path, evidence.tensors.specs)
    for name, format in FORMATS.items():
        if format.detect(evidence):
            reader = format.reader(evidence.tensors, evidence.quantization, config)
            return Checkpoint(path, name, config, reader)
    raise unknown_method(path, evidence.method, [*FORMATS])


def gguf_in(path: Path) -> Path | None:
    """The GGUF file that a path is, whatever its name, or the only model in a folder without
    safetensors."""
    if path.is_file():
        return path if path.suffix == ".gguf" or is_gguf(path) else None
    found = sorted(path.glob("*.gguf")) if not any(path.glob("*.safetensors*")) else []
    return only_model(found) if found else None
