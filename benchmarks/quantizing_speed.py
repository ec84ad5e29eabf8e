"""Speed of quantizing: GB of weights read in a second, gqc's quantizers beside other libraries'.

Each makes codes and scales of the same random weight by the same algorithm. All run in one process
in turns, so that all meet the same noise: trust the ratios.

    python benchmarks/quantizing_speed.py --shapes 4096x4096 --dtypes bf16 f32
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle import forward as compressed
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from machine import describe_machine
from quantizer_peers import (
    HqqQuantizer,
    IntxChooseQParamsAlgorithm,
    IntxUnpackedToInt8Tensor,
    torchao_choose_hqq,
)
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import MXTensor
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale
from torchao.quantization import MappingType
from torchao.quantization.quantize_.common import KernelPreference

from gqc.quantizers import QUANTIZERS
from gqc.schemes import parse_scheme

RESULTS = Path(__file__).parent / "results" / "quantizing_speed.json"
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}

Quantize = Callable[[Tensor], object]


def ours(text: str) -> Quantize:
    scheme = parse_scheme(text)
    quantizer, type_ = QUANTIZERS[scheme.quantizer], scheme.type()
    return lambda weight: quantizer(weight, type_, scheme.scale_rule)


def torchao_intx(bits: int, group: int, mapping: str) -> Quantize:
    return lambda weight: IntxUnpackedToInt8Tensor.from_hp(
        weight,
        (1, group),  # pyright: ignore[reportArgumentType]
        getattr(torch, f"int{bits}"),
        mapping_type=MappingType[mapping],
        intx_choose_qparams_algorithm=IntxChooseQParamsAlgorithm.AFFINE,
    )


def torchao_hqq(bits: int, group: int) -> Quantize:
    return lambda weight: torchao_choose_hqq(weight, bits, group, device="cpu", raw_output=True)


def hqq(bits: int, group: int) -> Quantize | None:
    if HqqQuantizer is None:
        return None
    options = {"nbits": bits, "group_size": group, "axis": 1, "bitpack": False, "device": "cpu"}
    return lambda weight: HqqQuantizer.quantize(weight, **options)


def torchao_mx(element: object, rounding: str) -> Quantize:
    mode = ScaleCalculationMode(rounding)
    return lambda weight: MXTensor.to_mx(weight, element, 32, mode, KernelPreference.EMULATED)  # pyright: ignore


def torchao_nvfp4(weight: Tensor) -> object:
    scale = per_tensor_amax_to_scale(weight.abs().amax())
    return NVFP4Tensor.to_nvfp4(weight, per_tensor_scale=scale)


def compressed_tensors(group: int, **arguments: Any) -> Quantize:
    """The library's steps: least and greatest of groups, scales, codes."""
    args = QuantizationArgs(**arguments, group_size=group)

    def quantize(weight: Tensor) -> object:
        low, high = weight.unflatten(1, (-1, group)).aminmax(dim=-1)
        whole = generate_gparam(low.min(), high.max()) if args.strategy == "tensor_group" else None
        scale, zero = calculate_qparams(low, high, args, whole)
        zero = None if args.symmetric else zero
        return compressed.quantize(weight, scale, zero, args, global_scale=whole)  # pyright: ignore

    return quantize


def compressed_floats(group: int, strategy: str, scale: torch.dtype) -> Quantize:
    return compressed_tensors(group, num_bits=4, type="float", strategy=strategy, scale_dtype=scale)


INTEGER_ZEROS = "ui4 g128 scale=f16 zero=ui4 zero_mode=quantized quantizer=rtn scale_rule=minmax"
E2M1, E4M3 = torch.float4_e2m1fn_x2, torch.float8_e4m3fn
CASES: dict[str, dict[str, Quantize | None]] = {
    "rtn int4 g128, integer zero points": {
        "gqc": ours(INTEGER_ZEROS),
        "torchao": torchao_intx(4, 128, "ASYMMETRIC"),
        "compressed-tensors": compressed_tensors(
            128, num_bits=4, type="int", symmetric=False, strategy="group"
        ),
    },
    "rtn int4 g128, symmetric": {
        "gqc": ours("si4 g128 scale=f16 quantizer=rtn scale_rule=half"),
        "torchao": torchao_intx(4, 128, "SYMMETRIC"),
        "compressed-tensors": compressed_tensors(128, num_bits=4, type="int", strategy="group"),
    },
    "hqq int4 g64": {
        "gqc": ours("int4_g64+hqq"),
        "torchao": torchao_hqq(4, 64),
        "hqq": hqq(4, 64),
    },
    "hqq int2 g32": {
        "gqc": ours("int2_g32+hqq"),
        "torchao": torchao_hqq(2, 32),
        "hqq": hqq(2, 32),
    },
    "mxfp8 floor": {"gqc": ours("w8a16_mxfp8"), "torchao": torchao_mx(E4M3, "floor")},
    "mxfp4 floor": {"gqc": ours("w4a16_mxfp4"), "torchao": torchao_mx(E2M1, "floor")},
    "mxfp4 even": {
        "gqc": ours("w4a16_mxfp4_even"),
        "torchao": torchao_mx(E2M1, "even"),
        "compressed-tensors": compressed_floats(32, "group", torch.uint8),
    },
    "nvfp4": {
        "gqc": ours("w4a16_nvfp4"),
        "torchao": torchao_nvfp4,
        "compressed-tensors": compressed_floats(16, "tensor_group", torch.float8_e4m3fn),
    },
}


def measure(calls: dict[str, Quantize], weight: Tensor, repeats: int) -> dict[str, float]:
    """Median seconds of each, taken in turns after one turn to warm up."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call(weight)
            if turn:
                times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description="speed of gqc's quantizers beside other libraries'"
    )
    parser.add_argument("--shapes", nargs="+", default=["4096x4096", "4096x14336"], help="NxK")
    parser.add_argument("--dtypes", nargs="+", default=list(DTYPES), choices=DTYPES)
    parser.add_argument("--cases", nargs="+", default=[""], help="parts of names")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()

    table = Table("algorithm", "weight", "dtype", "gqc GB/s", "peer", "GB/s", "speed-up")
    document: dict[str, Any] = {"machine": describe_machine(), "results": []}
    for shape in options.shapes:
        n, k = map(int, shape.split("x"))
        for dtype in options.dtypes:
            weight = (torch.randn(n, k, generator=torch.Generator().manual_seed(0)) * 0.02).to(
                DTYPES[dtype]
            )
            for name, case in CASES.items():
                if not any(part in name for part in options.cases):
                    continue
                calls = {who: call for who, call in case.items() if call is not None}
                seconds = measure(calls, weight, options.repeats)
                speed = {who: weight.nbytes / s / 1e9 for who, s in seconds.items()}
                result = {"algorithm": name, "n": n, "k": k, "dtype": dtype, "gb_per_s": speed}
                document["results"].append(result)
                for who, rate in list(speed.items())[1:]:
                    ratio = f"{speed['gqc'] / rate:.2f}×"
                    mine = f"{speed['gqc']:.3f}"
                    table.add_row(name, shape, dtype, mine, who, f"{rate:.3f}", ratio)
                options.output.parent.mkdir(parents=True, exist_ok=True)
                options.output.write_text(json.dumps(document, indent=1) + "\n")
    Console().print(table)


if __name__ == "__main__":
    main()
