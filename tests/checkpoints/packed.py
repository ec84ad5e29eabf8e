"""Samples from our own packers."""

from __future__ import annotations

import json
from typing import Any

import torch
from checkpoints import packers
from checkpoints.sample import LAYER, Sample, codes_of, generator, sample, scales_of, spread
from safetensors.torch import save


def awq(version: str, group: int = 32, n: int = 16, k: int = 128) -> Sample:
    codes, zero = codes_of(4, n, k), codes_of(4, n, k // group, seed=3)
    scale = scales_of(n, k // group)
    pack = {
        "gemm": packers.awq_gemm,
        "gemv": packers.awq_gemv,
        "gemv_fast": packers.awq_gemv_fast,
    }[version]
    weight = (codes - spread(zero, group)) * spread(scale, group)
    if version == "gemv_fast":
        weight = codes * spread(scale, group) + spread(-(scale.float() * zero).half(), group)
    config = {"quant_method": "awq", "bits": 4, "group_size": group, "version": version}
    return sample(config | {"zero_point": True}, pack(codes, zero, scale), weight)


def gptq(bits: int, version: int, order: bool, group: int = 32, sym: bool = False) -> Sample:
    n, k = 32, 96
    size = k if group == -1 else group
    codes, scale = codes_of(bits, n, k), scales_of(n, k // size)
    zero = (
        torch.full((n, k // size), 1 << bits - 1) if sym else codes_of(bits, n, k // size, seed=3)
    )
    columns = torch.randperm(k, generator=generator()) if order else torch.arange(k)
    g_idx = columns // size
    weight = (codes - zero[:, g_idx]) * scale[:, g_idx].double()
    config = {
        "quant_method": "gptq",
        "bits": bits,
        "group_size": group,
        "desc_act": order,
        "sym": sym,
        "checkpoint_format": "gptq" if version == 1 else "gptq_v2",
    }
    return sample(config, packers.gptq(codes, zero, scale, bits, g_idx, version), weight)


def hqq(bits: int, axis: int, group: int = 32, view_as_float: bool = False) -> Sample:
    n, k = 64, 96
    shape, one = ((n * k // group, group), 1) if axis == 1 else ((group, n * k // group), 0)
    codes = codes_of(bits, *shape)
    meta = [1 if dim == one else size for dim, size in enumerate(shape)]
    scale, zero = scales_of(*meta), scales_of(*meta, seed=3) * 20
    weight = ((codes - zero.double()) * scale.double()).reshape(n, k)
    parts = packers.hqq(codes, zero, scale, bits, axis, group)
    parts["shape"] = torch.tensor([n, k])
    if view_as_float:
        parts["W_q"] = parts["W_q"].view(torch.float16)
        parts["view_as_float"] = torch.tensor(1, dtype=torch.uint8)
    params = {"nbits": bits, "group_size": group, "axis": axis}
    config = {"quant_method": "hqq", "quant_config": {"weight_quant_params": params}}
    return sample(config, parts, weight)


def e4m3(*shape: int, seed: int = 4) -> torch.Tensor:
    """Positive scales."""
    return codes_of(7, *shape, seed=seed).clamp(0, 0x7E).to(torch.uint8).view(torch.float8_e4m3fn)


def modelopt(algorithm: str) -> Sample:
    n, k = 32, 64
    factor = torch.tensor(0.0123)
    config: dict[str, Any] = {"quant_method": "modelopt", "quant_algo": algorithm}
    if algorithm == "W4A16_AWQ":
        codes, scale = codes_of(4, n, k) - 8, scales_of(n, k // 16, dtype=torch.bfloat16)
        before = scales_of(k, dtype=torch.bfloat16, seed=5)
        parts = {"weight": packers.row_pairs(codes), "weight_scale": scale}
        weight = codes * spread(scale, 16) * before.double()
        return sample(config | {"group_size": 16}, parts | {"pre_quant_scale": before}, weight)
    if algorithm == "FP8":
        codes = e4m3(n, k)
        parts = {"weight": codes, "weight_scale": factor, "input_scale": factor.clone()}
        return sample(config, parts, codes.double() * factor.double())
    codes, scale = codes_of(4, n, k), e4m3(n, k // 16)
    parts = {
        "weight": packers.pack_bytes(codes, 4),
        "weight_scale": scale,
        "weight_scale_2": factor,
        "input_scale": torch.tensor(0.5),
    }
    weight = packers.fp4_values(codes) * spread(scale, 16) * factor.double()
    if algorithm == "MIXED_PRECISION":
        config["quantized_layers"] = {LAYER: {"quant_algo": "NVFP4", "group_size": 16}}
    return sample(config, parts, weight)


def fp8(n: int = 40, k: int = 96) -> Sample:
    """Blocks of 16×64, which both edges cut."""
    codes, scale = e4m3(n, k), scales_of(-(-n // 16), -(-k // 64), dtype=torch.float32)
    weight = torch.empty(n, k, dtype=torch.float64)
    for r in range(n):
        for c in range(k):
            weight[r, c] = codes[r, c].double() * scale[r // 16, c // 64].double()
    config = {"quant_method": "fp8", "weight_block_size": [16, 64], "activation_scheme": "dynamic"}
    return sample(config, {"weight": codes, "weight_scale_inv": scale}, weight)


def e8m0(*shape: int, seed: int = 6) -> torch.Tensor:
    """Bytes of scales of about 1."""
    return (codes_of(4, *shape, seed=seed) + 120).to(torch.uint8)


def gpt_oss() -> Sample:
    experts, n, k = 3, 8, 64
    codes, scale = codes_of(4, experts, n, k), e8m0(experts, n, k // 32)
    values = packers.fp4_values(codes).view(experts, n, k // 32, 32)
    weight = (values * torch.exp2(scale.double() - 127).unsqueeze(-1)).view(experts, n, k)
    blocks = packers.pack_bytes(codes.view(-1, k), 4).view(experts, n, k // 32, 16)
    name, bias = "model.layers.0.mlp.experts.gate_up_proj", scales_of(experts, n)
    config = {"quantization_config": {"quant_method": "mxfp4"}, "model_type": "gpt_oss"}
    tensors = {f"{name}_blocks": blocks, f"{name}_scales": scale, f"{name}_bias": bias}
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": save(tensors)}
    return Sample(files, {name: weight.transpose(1, 2), f"{name}_bias": bias})


def plain(shards: int) -> Sample:
    """Dense tensors, in one file or in several."""
    parameters = {f"model.layers.{i}.weight": scales_of(4, 8, seed=i) for i in range(4)}
    if shards == 1:
        return Sample({"config.json": b"{}", "model.safetensors": save(parameters)}, parameters)
    files, places = {"config.json": b"{}"}, {}
    for i, (name, tensor) in enumerate(parameters.items()):
        file = f"model-{i % shards + 1:05}-of-{shards:05}.safetensors"
        places[name] = file
        inside = {n: parameters[n] for n, p in places.items() if p == file}
        files[file] = save({**inside, name: tensor})
    files["model.safetensors.index.json"] = json.dumps({"weight_map": places}).encode()
    return Sample(files, parameters)
