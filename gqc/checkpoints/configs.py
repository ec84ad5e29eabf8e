"""Where the quantization config of a checkpoint is, and why some methods are not read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gqc.checkpoints.files import read_json
from gqc.errors import GqcError

CONFIG_KEYS = ("quantization_config", "compression_config", "quantization")
"""Keys of the quantization config in config.json: today's, compressed-tensors' old one, MLX's."""
PARTS = ("text_config", "llm_config", "language_config")
"""Keys of the language model's own config, where that of a larger model has it apart."""

MLX_KEYS = {"group_size", "bits"}
"""What MLX says, and no method."""


@dataclass(frozen=True)
class OwnFile:
    """A file that holds a quantization config; `key` is where in it, `method` whose it is."""

    name: str
    key: str = ""
    method: str = ""


OWN_FILES = (
    OwnFile("hf_quant_config.json", "quantization", "modelopt"),
    OwnFile("quantization_config.json"),
    OwnFile("quantize_config.json", method="gptq"),
    OwnFile("quant_config.json", method="awq"),
)
"""Files beside config.json, of ModelOpt, AutoRound, GPTQ's tools and AutoAWQ."""

QUANTIZED = (".qweight", ".weight_packed", ".W_q")
"""Ends of names of tensors that no dense checkpoint has."""

LOW_RANK = (".svdquant_lora_a", ".svdquant_lora_b", ".wscales", ".wcscales", ".wtscale")
"""Ends of names of SVDQuant's tensors, by ModelOpt and Nunchaku."""

UNREAD = {
    "mlx": "MLX's layout; convert the model from its original weights",
    "bitnet": "ternary weights in a packing of its own",
    "aqlm": "additive codebooks",
    "vptq": "vector codebooks",
    "spqr": "sparse outliers beside codes",
    "higgs": "vector grids under a Hadamard rotation",
    "quip": "lattice codebooks",
    "exl2": "ExLlamaV2's layout of mixed bits",
    "exl3": "ExLlamaV3's trellis codes",
    "eetq": "codes in the order of a GPU kernel",
    "quanto": "tensors that only optimum-quanto reads",
    "paroquant": "rotations of pairs of channels as the model runs",
    "fp_quant": "codes under a Hadamard rotation of its own",
    "svdquant": "codes beside products of low rank; quantize the model anew, as NVFP4 say",
    "gguf": "blocks of GGUF in safetensors; give the .gguf file",
    "marlin": "codes in the order of a GPU kernel",
    "qqq": "codes in the order of a GPU kernel",
    "sinq": "scales along both dimensions",
}
"""What is known of methods that are not read."""


def quantization_of(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    """The quantization config, from config.json or a file of its own; empty without one.

    Raises GqcError if it is no object.
    """
    for said in (config, *(config.get(part) for part in PARTS)):
        for key in CONFIG_KEYS:
            quantization = said.get(key) if isinstance(said, Mapping) else None
            if quantization and not isinstance(quantization, dict):
                raise GqcError(f"{folder}: {key} is {quantization!r}, not an object")
            if quantization:
                is_mlx = not method_of(quantization) and quantization.keys() >= MLX_KEYS
                return with_method(quantization, "mlx" if is_mlx else None)
    for own in OWN_FILES:
        if (path := folder / own.name).is_file():
            content = read_json(path)
            quantization = content.get(own.key) if own.key else content
            if not isinstance(quantization, dict):
                raise GqcError(f"{path}: {own.key} is {quantization!r}, not an object")
            return with_method(quantization, own.method)
    return {}


def method_of(quantization: Mapping[str, Any]) -> Any:
    """The method that a config names: GPTQModel calls it `method`, all others `quant_method`."""
    return quantization.get("quant_method") or quantization.get("method")


def with_method(quantization: dict[str, Any], default: str | None) -> dict[str, Any]:
    """A config whose `quant_method` is the one that it names, or else a default."""
    method = method_of(quantization) or default
    return {**quantization, "quant_method": method} if method else quantization


def without_quantization(config: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config without quantization configs. Parts that held nothing else are left out."""
    result = {}
    for key, value in config.items():
        if key in CONFIG_KEYS:
            continue
        kept = without_quantization(value) if isinstance(value, dict) else value
        if kept or not value:
            result[key] = kept
    return result


def refuse_unsaid(where: Path, names: Iterable[str]) -> None:
    """Raise GqcError if a tensor is part of a quantized weight: no config says of which kind."""
    names = list(names)
    refuse_low_rank(where, names)
    if name := next((name for name in names if name.endswith(QUANTIZED)), None):
        files = ", ".join(("config.json", *(own.name for own in OWN_FILES)))
        raise GqcError(
            f"{where}: {name} is part of a quantized weight, but no quantization config says how: "
            f"none in {files}"
        )


def refuse_low_rank(where: Path, names: Iterable[str]) -> None:
    """Raise GqcError if a tensor is one of SVDQuant's, which adds a product of low rank."""
    if name := next((name for name in names if name.endswith(LOW_RANK)), None):
        raise GqcError(f"{where}: {name} is SVDQuant's, which is not read ({UNREAD['svdquant']})")


def unknown_method(where: Path, method: Any, known: list[str]) -> GqcError:
    """The error about a `quant_method` that is not read."""
    said = str(method).lower()
    reason = next((why for name, why in UNREAD.items() if said.startswith(name)), "")
    why = f" ({reason})" if reason else ""
    return GqcError(
        f"{where}: quant_method is {method!r}{why}, expected one of {', '.join(known)}: "
        "give the dense model and a scheme, or a checkpoint in one of these"
    )
