"""Kernels on the GPU at hand: numerics against float64, and times beside torch's.

`layers` compiles a linear layer under each scheme for this GPU and compares what it computes with
the product of the decoded operands in float64. `dot_scaled` does so for the block-scaled matmuls
that are made for other GPUs, which Triton emulates here. `times` measures layers of Llama 3 8B.
Writes JSON after each row; a fault is a row like any other, and makes the status 1.

    python benchmarks/device.py [--parts layers dot_scaled times] [--minutes 9]

With TRITON_INTERPRET=1 the first two parts run on a CPU, in Triton's interpreter, as for --target.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from layers import layer
from machine import describe_machine
from rich.console import Console
from torch import Tensor, nn

import gqc
from gqc.codegen.triton import load
from gqc.codegen.triton.interpreter import interpreting
from gqc.dialects.gq import LayoutAttr
from gqc.formats.block_scaled import BlockScaled
from gqc.native import NATIVE, native
from gqc.quantizers import QUANTIZERS, microscaling
from gqc.schemes import PRESETS, ROUNDINGS, Scheme, preset
from gqc.tools.gqc_opt import tile_kernels

RESULTS = Path(__file__).parent / "results" / "device.json"

SCHEMES = [
    *("int8_g32", "int4_g128", "int3_g64", "int2_g32_sym", "int4_row"),
    *(
        name
        for name in PRESETS
        if not name.endswith((*filter(None, ROUNDINGS), "_static"))
        and (PRESETS[name].group or 1) <= 32  # which divides K below
    ),
]
SMALL = ((37, 160), (300, 544))
"""N and K that fill no tile."""
SMALL_ROWS = (1, 7, 19, 70, 130)

TIMED = ("int4_g128", "w4a16_mxfp4", "w4a16_nvfp4", "w8a16_mxfp8", "mxfp8", "mxfp4", "nvfp4")
LARGE = ((6144, 4096), (4096, 4096), (28672, 4096), (4096, 14336))
LARGE_ROWS = (1, 16, 64, 256, 4096)

Row = dict[str, Any]


def random(*shape: int, device: str) -> Tensor:
    generator = torch.Generator().manual_seed(shape[0] * 31 + shape[-1])
    return torch.randn(*shape, generator=generator).bfloat16().to(device)


def excess(y: Tensor, x: Tensor, w: Tensor, bias: Tensor) -> float:
    """The largest error of y in units of what its rounding and K sums in float32 may cost."""
    expected = x @ w.T + bias
    magnitude = x.abs() @ w.abs().T + bias.abs()
    unit = torch.finfo(y.dtype).eps / 2
    bound = unit * expected.abs() + (x.shape[1] + 4) * 2.0**-24 * magnitude
    error = (y.double() - expected).abs() / bound.clamp(min=2.0**-126)
    return float(error.nan_to_num(nan=torch.inf).max())


def quantized(x: Tensor, scheme: Scheme) -> BlockScaled:
    return microscaling(x, scheme.type(), scheme.scale_rule)


# Layers


def layers(schemes: Sequence[str], target: str, device: str) -> Iterator[Row]:
    """Each scheme on each small layer: the largest error of any number of rows."""
    for name in schemes:
        for n, k in SMALL:
            row: Row = {"scheme": name, "n": n, "k": k}
            if k % (preset(name).group or 1) == 0:
                yield row | attempt(lambda n=n, k=k, name=name: check(n, k, name, target, device))


def check(n: int, k: int, name: str, target: str, device: str) -> Row:
    scheme, linear = preset(name), nn.Linear(k, n).bfloat16()
    compiled = gqc.compile(linear.to(device), scheme=name, target=target, progress=False)
    quantizer = QUANTIZERS[scheme.quantizer]
    w = quantizer(linear.weight.detach(), scheme.type(), scheme.scale_rule)
    # Kernels that decode give weights the type of the activations.
    dense = w.dequantize(torch.float64)
    dense = dense if scheme.tensor_scale else dense.bfloat16().double()
    worst = 0.0
    for rows in SMALL_ROWS:
        x = random(rows, k, device=device)
        seen = x.double()
        if scheme.activation is not None:
            seen = quantized(x, scheme.activation).dequantize(torch.float64)
        bias = linear.bias.detach().double()
        worst = max(worst, excess(compiled(x).detach(), seen, dense, bias))
    return {"excess": worst, "decision": compiled.report().rows[0].decision}


def attempt(run: Any) -> Row:
    """What it gives, or what stopped it."""
    try:
        return run()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {str(error)[-300:]}"}


# Block-scaled matmuls of other GPUs


def dot_scaled(schemes: Sequence[str], target: str, device: str) -> Iterator[Row]:
    """Each product of the native table, as it is printed for each GPU of NVIDIA that has it."""
    for other in dict.fromkeys(key[0] for key in NATIVE):
        for name in schemes:
            scheme = preset(name)
            is_native = (
                scheme.activation is not None
                and native(other, scheme.activation.type(), scheme.type()) is not None
            )
            if is_native and other.startswith("sm_") and other != target:
                row = {"scheme": name, "made_for": other}
                yield row | attempt(lambda name=name, other=other: emulate(name, other, device))


def emulate(name: str, other: str, device: str) -> Row:
    (n, k), rows = SMALL[-1], SMALL_ROWS[-2]
    scheme = preset(name)
    assert scheme.activation is not None
    row = native(other, scheme.activation.type(), scheme.type())
    assert row is not None
    kernel = tile_kernels(layer(n, k, name, other, bias=True))[1]  # the first is the quantizer
    pack = LayoutAttr("bytes", scales=row.scales).row.pack
    x = quantized(random(rows, k, device=device), scheme.activation)
    w = quantized(random(n, k, device=device), scheme)
    bias = random(1, n, device=device)[0]
    y = torch.full((rows, n), torch.nan, dtype=torch.bfloat16, device=device)
    load(kernel)(*pack(x, 1), *pack(w, 1), bias, y)
    left, right = x.dequantize(torch.float64), w.dequantize(torch.float64)
    return {"excess": excess(y, left, right, bias.double())}


# Times


def times(schemes: Sequence[str], target: str, device: str) -> Iterator[Row]:
    """Median milliseconds of a call, its L2 cache cold, beside torch's dense product in bf16."""
    for n, k in LARGE:
        linear = nn.Linear(k, n, bias=False, device=device, dtype=torch.bfloat16)
        dense = {rows: median(linear, random(rows, k, device=device)) for rows in LARGE_ROWS}
        for name in schemes:
            compiled = gqc.compile(linear, scheme=name, target=target, progress=False)
            for rows in LARGE_ROWS:
                row: Row = {"scheme": name, "n": n, "k": k, "rows": rows, "torch_ms": dense[rows]}
                x = random(rows, k, device=device)
                yield row | attempt(lambda run=compiled, x=x: {"gqc_ms": median(run, x)})


def median(run: Any, x: Tensor) -> float:
    from triton.testing import do_bench

    with torch.inference_mode():
        return float(do_bench(lambda: run(x), return_mode="median"))  # pyright: ignore


# The command

PARTS = {"layers": layers, "dot_scaled": dot_scaled, "times": times}


def place(target: str | None) -> tuple[str, str]:
    """Target and device. Ends the program where there is no GPU and nothing to stand in for it."""
    if interpreting():
        return target or "sm_90", "cpu"
    if not torch.cuda.is_available():
        sys.exit("device.py: no GPU here; TRITON_INTERPRET=1 runs `layers` and `dot_scaled`")
    return gqc.targets.resolve("auto", nn.Linear(1, 1, device="cuda")).name, "cuda"


def is_fault(row: Row) -> bool:
    return "error" in row or row.get("excess", 0) > 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--schemes", nargs="+", help="instead of each part's own")
    parser.add_argument("--target", help="what the interpreter stands in for")
    parser.add_argument("--minutes", type=float, default=9, help="begin no row after these")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    target, device = place(options.target)
    parts = [part for part in options.parts if device != "cpu" or part != "times"]
    end = time.monotonic() + 60 * options.minutes
    document: dict[str, Any] = {"machine": describe_machine(), "target": target}
    console = Console(width=140)
    for part in parts:
        rows = document[part] = []
        schemes = options.schemes or (TIMED if part == "times" else SCHEMES)
        for row in PARTS[part](schemes, target, device):
            rows.append(row)
            console.print(part, row, style="red" if is_fault(row) else None)
            options.output.write_text(json.dumps(document, indent=1) + "\n")
            if time.monotonic() > end:
                sys.exit(f"device.py: {options.minutes:g} minutes are over, in {part}")
    sys.exit(any(is_fault(row) for part in parts for row in document[part]))


if __name__ == "__main__":
    main()
