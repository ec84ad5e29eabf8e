"""Perplexity of SmolLM2-135M on WikiText-2 under each scheme, gqc's beside torchao's numerics.

gqc runs compiled kernels of this CPU. torchao has none for microscaling formats here, so its own
quantizers (`MXTensor`, `NVFP4Tensor`) round the same weights and activations, and torch multiplies
them; its integer schemes run as `quantize_` sets them up. Both quantize every linear layer but the
output head, in float32. Writes what it has after every scheme; `--resume` keeps those it finds.

    python benchmarks/perplexity.py --schemes mxfp8 nvfp4 --windows 4
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from machine import describe_machine
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup, quantize_
from torchao.quantization.quantize_.common import KernelPreference

import gqc
from gqc.schemes import Scheme, preset
from gqc.tools import models
from gqc.tools.perplexity import perplexity, token_windows

RESULTS = Path(__file__).parent / "results" / "perplexity.json"
CALIBRATION = 2
"""Windows of text that is not evaluated, for static scales."""
HEAD = "lm_head"
SCHEMES = (
    *("int8_g32", "int4_g32"),
    *("mxfp8", "mxfp8_e5m2", "mxint8", "mxfp6", "mxfp6_e3m2", "mxfp8_mxfp6", "mxfp8_mxfp4"),
    *("mxfp4", "mxfp4_rceil", "mxfp4_even", "nvfp4", "nvfp4_static"),
    *("w8a16_mxfp8", "w8a16_mxfp8_e5m2", "w8a16_mxint8", "w6a16_mxfp6", "w6a16_mxfp6_e3m2"),
    *("w4a16_mxfp4", "w4a16_nvfp4"),
    *("mxfp4+scale_search", "nvfp4+scale_search"),
    *("w4a16_mxfp4+scale_search", "w4a16_nvfp4+scale_search"),
)
NOTE = (
    "SmolLM2's weights lie on an int4 grid in blocks of 32: int4_g32 loses nothing, and the other "
    "schemes of 4 bits quantize what was quantized before. They tell gqc and torchao apart, not "
    "one format from another."
)

INTEGERS = {"ui8": torch.int8, "ui4": torch.int4}  # pyright: ignore[reportAttributeAccessIssue]
FLOATS = {
    "f8E4M3FN": torch.float8_e4m3fn,
    "f8E5M2": torch.float8_e5m2,
    "f6E2M3FN": "fp6_e2m3",
    "f6E3M2FN": "fp6_e3m2",
    "f4E2M1FN": torch.float4_e2m1fn_x2,
}
"""torchao's names of elements; it has no MXINT8."""


def rounded(x: Tensor, scheme: Scheme, tensor_scale: Tensor | None = None) -> Tensor:
    """x [..., K] as torchao quantizes and dequantizes it, in float32."""
    flat = x.reshape(-1, x.shape[-1]).contiguous()
    if scheme.tensor_scale:
        if tensor_scale is None:
            tensor_scale = per_tensor_amax_to_scale(flat.abs().amax())
        quantized = NVFP4Tensor.to_nvfp4(flat, per_tensor_scale=tensor_scale)
    else:
        mode, element = ScaleCalculationMode(scheme.scale_rule), FLOATS[scheme.element]
        quantized = MXTensor.to_mx(flat, element, 32, mode, KernelPreference.EMULATED)
    return quantized.dequantize(torch.float32).view_as(x)


def linears(model: nn.Module) -> Iterator[nn.Linear]:
    """The layers that are quantized."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and name != HEAD:
            yield module


def greatest_inputs(model: nn.Module, windows: Tensor) -> dict[nn.Linear, Tensor]:
    """The greatest magnitude that each layer reads."""
    greatest: dict[nn.Linear, Tensor] = {}

    def observe(layer: Any, args: tuple[Tensor, ...]) -> None:
        amax = args[0].abs().amax()
        greatest[layer] = torch.maximum(greatest.get(layer, amax), amax)

    hooks = [layer.register_forward_pre_hook(observe) for layer in linears(model)]
    perplexity(model, windows)
    for hook in hooks:
        hook.remove()
    return greatest


def torchao_model(model: nn.Module, scheme: Scheme, calibration: Tensor) -> nn.Module | None:
    """A copy of the model under torchao's numerics; None where it has no such scheme."""
    if scheme.quantizer == "scale_search":
        return None
    new = copy.deepcopy(model)
    if scheme.element in INTEGERS:
        config = IntxWeightOnlyConfig(
            INTEGERS[scheme.element], PerGroup(scheme.group or -1), MappingType.ASYMMETRIC
        )
        layers = set(linears(new))
        quantize_(new, config, filter_fn=lambda module, _: module in layers)
        return new
    activation = scheme.activation
    if not {scheme.element, (activation or scheme).element} <= FLOATS.keys():
        return None
    reached = greatest_inputs(new, calibration) if activation and activation.static else {}
    for layer in linears(new):
        layer.weight.data = rounded(layer.weight.data, scheme)
        if activation is not None:
            scale = per_tensor_amax_to_scale(reached[layer]) if layer in reached else None
            layer.register_forward_pre_hook(
                lambda _, args, scale=scale: (rounded(args[0], activation, scale),)
            )
    return new


def measure(model: nn.Module, name: str, windows: Tensor, calibration: Tensor) -> dict[str, Any]:
    """Perplexities under one scheme: gqc's, with the seconds it took, and torchao's or None."""
    scheme = preset(name)
    static = scheme.activation is not None and scheme.activation.static
    inputs = [window[None] for window in calibration] if static else None
    compiled = gqc.compile(model, scheme=name, target="cpu", calibration=inputs, progress=False)
    quantized = sum(row.decision != "kept" for row in compiled.report().rows)
    start = time.perf_counter()
    ours = perplexity(compiled, windows)
    seconds = time.perf_counter() - start
    with torch.inference_mode():
        peer = torchao_model(model, scheme, calibration)
    theirs = None if peer is None else perplexity(peer, windows)
    how = "quantize_" if scheme.element in INTEGERS else "its quantizers in hooks"
    return {
        "scheme": name,
        "layers": quantized,
        "gqc": ours,
        "gqc_seconds": seconds,
        "torchao": theirs,
        "torchao_by": None if peer is None else how,
    }


def table_of(document: dict[str, Any]) -> Table:
    """Perplexities, and how much higher than the float model's gqc's is."""
    exact = document["fp32"]
    tokens = document["windows"] * (document["context"] - 1)
    table = Table(title=f"perplexity, {tokens} tokens of WikiText-2; fp32 {exact:.3f}")
    for column in ("scheme", "gqc", "torchao", "gqc over fp32"):
        table.add_column(column, justify="left" if column == "scheme" else "right")
    for row in document["results"]:
        peer = "-" if row["torchao"] is None else f"{row['torchao']:.3f}"
        table.add_row(row["scheme"], f"{row['gqc']:.3f}", peer, f"{row['gqc'] / exact - 1:+.2%}")
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description="perplexity of SmolLM2-135M under each scheme")
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    parser.add_argument("--windows", type=int, default=4)
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("--resume", action="store_true", help="keep the schemes in the output file")
    options = parser.parse_args()

    console = Console()
    model, tokenizer = models.smollm2()
    text = models.wikitext2()
    windows = token_windows(tokenizer, text, options.windows, options.context)
    rest = text[len(text) // 2 :]
    calibration = token_windows(tokenizer, rest, CALIBRATION, options.context)
    document: dict[str, Any] = {
        "machine": describe_machine(),
        "model": "SmolLM2-135M-Instruct, float32",
        "text": "WikiText-2 (raw), the first tokens of the test split",
        "calibration": f"{CALIBRATION} windows from the middle of the test split, not evaluated",
        "windows": options.windows,
        "context": options.context,
        "note": NOTE,
        "fp32": perplexity(model, windows),
        "results": [],
    }
    found = {}
    if options.resume:
        found = {row["scheme"]: row for row in json.loads(options.output.read_text())["results"]}
    for name in options.schemes:
        result = found.get(name) or measure(model, name, windows, calibration)
        console.print(result, soft_wrap=True)
        document["results"].append(result)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(document, indent=1) + "\n")
    console.print(table_of(document))
    console.print(NOTE)


if __name__ == "__main__":
    main()
