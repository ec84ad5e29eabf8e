"""Write the tables of formats.md: every sample of the tests is read, compiled and asked.

python docs/formats.py
"""

from __future__ import annotations

import json
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import torch
from torch import nn

import gqc
from gqc.checkpoints.checkpoint import Checkpoint, open_checkpoint
from gqc.checkpoints.configs import UNREAD
from gqc.driver.stored_weights import codes_of, logical_shape
from gqc.errors import GqcError

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from checkpoints.samples import SAMPLES

PAGE = Path(__file__).with_name("formats.md")
START, END = "<!-- tables: python docs/formats.py -->\n", "<!-- end -->\n"

TITLES = {
    "dense": "safetensors, not quantized",
    "awq": "AWQ (AutoAWQ)",
    "gptq": "GPTQ (AutoGPTQ, GPTQModel)",
    "auto_round": "AutoRound",
    "hqq": "HQQ",
    "modelopt": "NVIDIA ModelOpt",
    "fp8": "FP8 (DeepSeek, AutoFP8, fbgemm)",
    "bitsandbytes": "bitsandbytes",
    "gpt_oss": "gpt-oss",
    "gqc": "gqc's own",
    "compressed_tensors": "compressed-tensors (llm-compressor)",
    "quark": "AMD Quark",
    "torchao": "torchao",
    "gguf": "GGUF (llama.cpp)",
}


@dataclass(frozen=True)
class Outcome:
    """What is held of a sample's weight, what its input becomes, and how the layer runs."""

    held: str
    activation: str
    runs: str


def outcome(format: str, variant: str) -> Outcome:
    """What becomes of a sample. A refusal is its message."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = compiled(SAMPLES[format][variant]().open(Path(folder)))
        except GqcError as error:
            return Outcome("", "", f"refused: {first_line(error, folder)}")
    is_decoded = any("decoded, and run dense" in str(each.message) for each in said)
    return Outcome("", "", found.runs.replace("dense", "decoded")) if is_decoded else found


def compiled(checkpoint: Checkpoint) -> Outcome:
    """The outcome of the largest weight, in a model of the checkpoint's parameters."""
    weights = {name: checkpoint.read(name) for name in checkpoint.names()}
    shapes = {name: tuple(logical_shape(weight)) for name, weight in weights.items()}
    name = max(weights, key=lambda name: len(shapes[name]))
    weight = weights[name]
    if isinstance(weight, torch.Tensor):
        return Outcome("", "", f"dense: {str(weight.dtype)[6:]}")
    if len(shapes[name]) > 2:
        return Outcome(codes_of(weight).type.text, "", "as stored, a layer for each expert")
    rows = gqc.compile(model_of(shapes), weights=checkpoint, target="cpu").report().rows
    row = next(row for row in rows if row.weight == name)
    runs = f"decoded: {row.reason}" if row.decision == "kept" else "as stored"
    return Outcome(row.format, row.activation, runs)


def model_of(shapes: dict[str, tuple[int, ...]]) -> nn.Module:
    """A model with a linear layer for each matrix called `weight`."""
    model = nn.Module()
    for name, shape in shapes.items():
        *path, leaf = name.split(".")
        module = model
        for part in path[:-1]:
            if not hasattr(module, part):
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        if leaf == "weight" and len(shape) == 2:
            has_bias = f"{'.'.join(path)}.bias" in shapes
            module.add_module(path[-1], nn.Linear(shape[1], shape[0], has_bias))
        elif not isinstance(getattr(module, path[-1], None), nn.Linear):
            inner = module._modules.setdefault(path[-1], nn.Module())
            assert inner is not None
            inner.register_parameter(leaf, nn.Parameter(torch.zeros(shape)))
    return model


def first_line(error: GqcError, folder: str) -> str:
    """The message, without the place of the file."""
    return str(error).replace(folder, "").splitlines()[0].removeprefix(": ").strip("/ ")


def rows(format: str) -> list[str]:
    """Lines of a format's table; variants with one outcome share a line."""
    groups: dict[Outcome, list[str]] = {}
    for variant in SAMPLES[format]:
        groups.setdefault(outcome(format, variant), []).append(variant)
    return [line(variants, found) for found, variants in groups.items()]


def line(variants: list[str], found: Outcome) -> str:
    names = ", ".join(f"`{variant}`" for variant in variants)
    cells = (names, code(found.held), code(found.activation), found.runs)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def refusals() -> Iterator[str]:
    """A line for each method that is known and not read, with the message."""
    for method in UNREAD:
        with tempfile.TemporaryDirectory() as folder:
            config = {"model_type": "llama", "quantization_config": {"quant_method": method}}
            (Path(folder) / "config.json").write_text(json.dumps(config), encoding="utf-8")
            (Path(folder) / "model.safetensors").write_bytes(b"\x02\0\0\0\0\0\0\0{}")
            try:
                open_checkpoint(folder)
                yield f"| `{method}` | read |"
            except GqcError as error:
                said = first_line(error, folder).partition(", expected one of")[0]
                yield f"| `{method}` | {said} |"


def other_blocks() -> str:
    """Types of blocks that no sample has: what gguf itself decodes, and what is refused."""
    others = [t for t in gguf.GGMLQuantizationType if t.name.lower() not in SAMPLES["gguf"]]
    decoded = [t.name for t in others if t in gguf.quants._type_traits]
    refused = [t.name for t in others if t.name not in decoded]
    return (
        f"Decoded by the gguf package, and run dense: {', '.join(decoded)}.\n"
        f"Refused by name: {', '.join(refused)}."
    )


def tables() -> str:
    parts = []
    head = "| variant | held as | input quantized to | runs |\n|---|---|---|---|\n"
    for format in SAMPLES:
        parts.append(f"## {TITLES[format]}\n\n{head}" + "\n".join(rows(format)) + "\n")
    lines = "\n".join(refusals())
    parts.append(f"## GGUF's other types of blocks\n\n{other_blocks()}\n")
    parts.append(f"## Refused\n\n| `quant_method` | the error says |\n|---|---|\n{lines}\n")
    return "\n".join(parts)


def page(text: str) -> str:
    """The page with new tables."""
    before, _, rest = text.partition(START)
    return f"{before}{START}\n{tables()}\n{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
