"""Samples of Quark's layouts."""

from __future__ import annotations

from typing import Any

import torch
from checkpoints import packers
from checkpoints.packed import e4m3, e8m0
from checkpoints.sample import Sample, codes_of, sample, scales_of, spread

GROUPED = {"qscheme": "per_group", "ch_axis": -1}
MX = GROUPED | {"group_size": 32, "scale_format": "e8m0", "is_dynamic": False}
SECOND = {"dtype": "fp8_e4m3", "qscheme": "per_tensor"}

QUARK: dict[str, Any] = {
    "int4": {"dtype": "int4", **GROUPED, "group_size": 32},
    "uint4": {"dtype": "uint4", **GROUPED, "group_size": 32},
    "uint4_order": {"dtype": "uint4", **GROUPED, "group_size": 32},
    "uint4_padded": {"dtype": "uint4", **GROUPED, "group_size": 32},
    "int4_row": {"dtype": "int4", "qscheme": "per_channel", "ch_axis": 0},
    "uint4_row": {"dtype": "uint4", "qscheme": "per_channel", "ch_axis": 0},
    "int8_row": {"dtype": "int8", "qscheme": "per_channel", "ch_axis": 0},
    "int8_group": {"dtype": "int8", **GROUPED, "group_size": 32},
    "uint8_tensor": {"dtype": "uint8", "qscheme": "per_tensor"},
    "fp8": {"dtype": "fp8_e4m3", "qscheme": "per_tensor"},
    "fp8_row": {"dtype": "fp8_e4m3", "qscheme": "per_channel", "ch_axis": 0},
    "mxfp4": {"dtype": "fp4", **MX},
    "mxfp6": {"dtype": "fp6_e3m2", **MX},
    "nvfp4": [{"dtype": "fp4", **GROUPED, "group_size": 16}, SECOND],
}
"""What the config says of weights."""

INPUTS = {"mxfp4": QUARK["mxfp4"], "nvfp4": QUARK["nvfp4"], "fp8": SECOND}


def quark(name: str) -> Sample:
    spec = QUARK[name]
    n, k = (20 if name == "uint4_padded" else 32), 96
    config = {"weight": spec, "input_tensors": INPUTS.get(name), "output_tensors": None}
    said: dict[str, Any] = {"quant_method": "quark", "layer_quant_config": {"*.lm_head": {}}}
    said["export"] = {
        "kv_cache_group": [],
        "pack_method": "order" if "order" in name else "reorder",
    }
    said |= {"layer_type_quant_config": {}, "global_quant_config": config, "exclude": ["lm_head"]}
    make = integers if "int" in name else floats
    parts, weight = make(name, spec, n, k)
    return sample(said, parts, weight)


def integers(name: str, spec: dict[str, Any], n: int, k: int) -> tuple[dict[str, Any], Any]:
    bits, signed = int(spec["dtype"][-1]), not spec["dtype"].startswith("u")
    group = spec.get("group_size", k)
    shape = (1, 1) if spec["qscheme"] == "per_tensor" else (n, k // group)
    codes = codes_of(bits, n, k) - (1 << bits - 1 if signed else 0)
    zero = torch.zeros(shape, dtype=torch.long) if signed else codes_of(bits, *shape, seed=3)
    scale = scales_of(*shape)
    each = [part.double().expand(n, -1) if len(part) == 1 else part for part in (scale, zero)]
    weight = (codes - spread(each[1], group)) * spread(each[0], group)
    grouped = spec["qscheme"] == "per_group"
    stored = [part.T if grouped else part for part in (codes, zero)]
    if bits == 4:
        pack = pack_in_order if "order" in name else packers.awq_words
        padded = [torch.nn.functional.pad(part & 15, (0, -part.shape[1] % 8)) for part in stored]
        if not grouped:
            padded[1] = torch.nn.functional.pad(zero.T & 15, (0, -n % 8))
        stored = [pack(part) for part in padded]
    else:
        stored = [part.to(torch.int8 if signed else torch.uint8) for part in stored]
    if not grouped:
        scale = scale.flatten() if spec["qscheme"] == "per_channel" else scale.reshape(())
        stored[1] = stored[1].flatten() if scale.ndim else stored[1].reshape(())
    parts = {"weight": stored[0], "weight_scale": scale.T if grouped else scale}
    return {**parts, "weight_zero_point": stored[1]}, weight


def pack_in_order(codes: torch.Tensor) -> torch.Tensor:
    return packers.pack_rows(codes, 4)


def floats(name: str, spec: Any, n: int, k: int) -> tuple[dict[str, Any], Any]:
    if name.startswith("fp8"):
        shape = (n,) if name == "fp8_row" else ()
        codes, scale = e4m3(n, k), scales_of(*shape, dtype=torch.float32)
        weight = codes.double() * scale.double().reshape(-1, 1)
        return {"weight": codes, "weight_scale": scale, "input_scale": torch.tensor(0.1)}, weight
    if name == "nvfp4":
        codes, scale, factor = codes_of(4, n, k), e4m3(n, k // 16), torch.tensor(0.0123)
        weight = packers.fp4_values(codes) * spread(scale, 16) * factor.double()
        parts = {"weight": packers.pack_bytes(codes, 4), "weight_scale": scale}
        return parts | {"weight_scale_2": factor, "input_scale_2": torch.tensor(0.5)}, weight
    scale = e8m0(n, k // 32)
    if name == "mxfp4":
        codes = codes_of(4, n, k)
        values = packers.fp4_values(codes)
    else:
        codes = codes_of(6, n, k)
        values = e3m2(codes)
    parts = {"weight": packers.pack_bytes(codes, 4 if name == "mxfp4" else 6)}
    weight = values * spread(torch.exp2(scale.double() - 127), 32)
    return parts | {"weight_scale": scale}, weight


def e3m2(codes: torch.Tensor) -> torch.Tensor:
    """float64 values of codes of a sign, 3 bits of exponent and 2 of mantissa."""
    sign, exponent, mantissa = codes >> 5, codes >> 2 & 7, codes & 3
    normal = (1 + mantissa / 4) * torch.exp2(exponent.double() - 3)
    return torch.where(exponent == 0, mantissa / 16, normal) * (1 - 2 * sign)
