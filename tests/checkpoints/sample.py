"""What a sample is: a small checkpoint, with the parameters that it holds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import deserialize
from safetensors.torch import save

from gqc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gqc.checkpoints.weights import dense

DTYPES = {
    **{"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16},
    **{"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8},
    **{"U8": torch.uint8, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2},
    "F8_E8M0": torch.float8_e8m0fnu,
}

Tensors = dict[str, torch.Tensor]
LAYER = "model.layers.0.mlp.down_proj"


@dataclass
class Sample:
    """A checkpoint: files by name, and dense parameters."""

    files: dict[str, bytes]
    parameters: Tensors

    def open(self, folder: Path) -> Checkpoint:
        """Write the files and open them."""
        for name, content in self.files.items():
            (folder / name).write_bytes(content)
        return open_checkpoint(folder)

    def check(self, folder: Path) -> Checkpoint:
        """Every parameter, computed in float64 or float32, is what it must be, to the bit."""
        checkpoint = self.open(folder)
        assert set(checkpoint.names()) == self.parameters.keys()
        for name, expected in self.parameters.items():
            dtype = torch.float32 if expected.dtype == torch.float32 else torch.float64
            found = dense(checkpoint.read(name), dtype).to(expected.dtype)
            assert torch.equal(found, expected), name
        return checkpoint


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def codes_of(bits: int, *shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randint(0, 1 << bits, shape, generator=generator(seed))


def scales_of(*shape: int, dtype: torch.dtype = torch.float16, seed: int = 2) -> torch.Tensor:
    return (torch.rand(shape, generator=generator(seed)) + 0.5).div(8).to(dtype)


def spread(part: torch.Tensor, group: int) -> torch.Tensor:
    """A scale of each group [N, G] as one of each element, float64."""
    return part.double().repeat_interleave(group, 1)


def sample(
    quantization: dict[str, Any] | None,
    parts: Tensors,
    weight: torch.Tensor,
    metadata: dict[str, str] | None = None,
) -> Sample:
    """A model of one quantized layer with a bias, and a norm."""
    norm, bias = scales_of(weight.shape[-1], seed=7), scales_of(weight.shape[0], seed=8)
    rest = {"model.norm.weight": norm, f"{LAYER}.bias": bias}
    tensors = {**{f"{LAYER}.{part}": tensor.contiguous() for part, tensor in parts.items()}, **rest}
    config = {"model_type": "llama"}
    if quantization is not None:
        config["quantization_config"] = quantization  # pyright: ignore[reportArgumentType]
    stored = save(tensors, metadata)
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": stored}
    return Sample(files, {f"{LAYER}.weight": weight, **rest})


def tensors_of(content: bytes) -> dict[str, torch.Tensor]:
    """All that safetensors hold; their own function of this kind knows no E8M0."""
    result = {}
    for name, entry in deserialize(content):
        raw = torch.tensor(list(entry["data"]), dtype=torch.uint8)
        result[name] = raw.view(DTYPES[entry["dtype"]]).view(entry["shape"])
    return result
