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


def gptq(
    bits: int, version: int, order: bool, group: int = 32, sym: bool = False, k: int = 96
) -> Sample:
    n, size = 32, k if group == -1 else group
    blocks = -(-k // size)
    codes, scale = codes_of(bits, n, k), scales_of(n, blocks)
    zero = torch.full((n, blocks), 1 << bits - 1) if sym else codes_of(bits, n, blocks, seed=3)
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


AUTO_ROUND = ("auto_round", "auto_round:auto_gptq", "auto_round:gptqmodel", "auto_round:auto_awq")


def auto_round(form: str) -> Sample:
    """A layer of 4 bits in a model whose other layers have 8 in larger groups."""
    n, k, group = 32, 96, 32
    codes, zero = codes_of(4, n, k), codes_of(4, n, k // group, seed=3)
    scale = scales_of(n, k // group)
    version = 1 if form.endswith("auto_gptq") else 2
    if form.endswith("awq"):
        parts = packers.awq_gemm(codes, zero, scale)
    else:
        parts = packers.gptq(codes, zero, scale, 4, torch.arange(k) // group, version)
        del parts["g_idx"]
    config = {"quant_method": "auto-round", "packing_format": form, "data_type": "int"}
    layer = {"bits": 4, "group_size": group, "sym": False}
    rest = {"bits": 4 if form.endswith("awq") else 8, "group_size": 96, "sym": True}
    config |= {**rest, "extra_config": {LAYER: layer, "lm_head": {"bits": 16}}}
    return sample(config, parts, (codes - spread(zero, group)) * spread(scale, group))


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
    if algorithm in ("W4A16_AWQ", "W4A8_AWQ"):
        codes, scale = codes_of(4, n, k) - 8, scales_of(n, k // 16, dtype=torch.bfloat16)
        before = scales_of(k, dtype=torch.bfloat16, seed=5)
        parts = {"weight": packers.row_pairs(codes), "weight_scale": scale}
        weight = codes * spread(scale, 16) * before.double()
        if algorithm == "W4A8_AWQ":
            parts |= {"weight_scale_2": factor, "input_scale": factor.clone()}
        return sample(config | {"group_size": 16}, parts | {"pre_quant_scale": before}, weight)
    if algorithm == "FP8":
        codes = e4m3(n, k)
        parts = {"weight": codes, "weight_scale": factor, "input_scale": factor.clone()}
        return sample(config, parts, codes.double() * factor.double())
    if algorithm == "FP8_PER_CHANNEL_PER_TOKEN":
        codes, scale = e4m3(n, k), scales_of(n, dtype=torch.float32)
        weight = codes.double() * scale.double()[:, None]
        return sample(config, {"weight": codes, "weight_scale": scale}, weight)
    if algorithm == "fp8_pb_wo":
        codes, scale = e4m3(200, 256), scales_of(2, 1, 2, 1, dtype=torch.float32)
        each = scale.double()[:, 0, :, 0].repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)
        return sample(config, {"weight": codes, "weight_scale": scale}, codes.double() * each)
    if algorithm == "MXFP8":
        codes, scale = e4m3(n, k), e8m0(n, k // 32)
        weight = codes.double() * spread(torch.exp2(scale.double() - 127), 32)
        return sample(config, {"weight": codes, "weight_scale": scale}, weight)
    if algorithm == "W4A8_MXFP4_FP8":
        codes, scale = codes_of(4, n, k), e8m0(n, k // 32)
        weight = packers.fp4_values(codes) * spread(torch.exp2(scale.double() - 127), 32)
        parts = {"weight": packers.pack_bytes(codes, 4), "weight_scale": scale}
        return sample(config, {**parts, "input_scale": factor}, weight)
    if algorithm == "W8A8_SQ_PER_CHANNEL":
        codes, scale = codes_of(8, n, k) - 128, scales_of(n, dtype=torch.float32)
        before = scales_of(k, dtype=torch.float32, seed=5)
        weight = codes.double() * scale.double()[:, None] * before.double()
        parts = {"weight": codes.to(torch.int8), "weight_scale": scale, "input_scale": factor}
        return sample(config, {**parts, "pre_quant_scale": before}, weight)
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


FP8: dict[str, tuple[dict[str, Any], str, tuple[int, ...], torch.dtype]] = {
    "mistral": ({"weight_block_size": None}, "weight_scale_inv", (), torch.float32),
    "autofp8": ({"ignored_layers": ["lm_head"]}, "weight_scale", (1,), torch.bfloat16),
    "row": ({}, "weight_scale", (160,), torch.float16),
    "fbgemm": ({"quant_method": "fbgemm_fp8"}, "weight_scale", (160, 1), torch.float32),
    "null_blocks": ({"weight_block_size": None}, "weight_scale_inv", (2, 3), torch.float32),
    "ue8m0": ({"scale_fmt": "ue8m0"}, "weight_scale_inv", (2, 3), torch.float8_e8m0fnu),
}
"""What the config says; the name, shape and format of the factors of a weight [160, 320]."""


def fp8_variant(variant: str) -> Sample:
    config, part, shape, dtype = FP8[variant]
    codes = e4m3(160, 320)
    if variant == "row":
        codes = codes_of(7, 160, 320).clamp(0, 0x7B).byte().view(torch.float8_e5m2)
    scale = scales_of(*shape, dtype=torch.float32).to(dtype)
    each = scale.double().reshape(-1, 1) if len(shape) < 2 else scale.double()
    if len(shape) == 2 and shape[1] > 1:
        each = each.repeat_interleave(128, 0)[:160].repeat_interleave(128, 1)[:, :320]
    inputs = {"input_scale": torch.tensor(0.02)}
    return sample(
        {"quant_method": "fp8", **config},
        {"weight": codes, part: scale, **inputs},
        codes.double() * each,
    )


NF4 = [
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
]
FP4 = [0, 1 / 192, 2 / 3, 1, 1 / 3, 1 / 2, 1 / 6, 1 / 4]

BITSANDBYTES = ("nf4", "nf4_nested", "fp4", "nf4_across_rows", "nf4_in_bf16", "int8")


def bitsandbytes(variant: str) -> Sample:
    """Blocks of 64 of the flattened weight, which end within rows of 96; or rows of int8."""
    n, k = (16, 96) if variant == "nf4_across_rows" else (16, 128)
    config: dict[str, Any] = {"quant_method": "bitsandbytes", "load_in_4bit": variant != "int8"}
    if variant == "int8":
        codes, scale = codes_of(8, n, k) - 128, scales_of(n, dtype=torch.float32)
        parts = {"weight": codes.to(torch.int8), "SCB": scale}
        parts["weight_format"] = torch.tensor(0, dtype=torch.uint8)
        return sample(config, parts, codes.double() * (scale / 127).double()[:, None])
    kind, size = variant[:3], 64
    values = torch.tensor(NF4 if kind == "nf4" else [*FP4, *(-v for v in FP4)])
    codes, blocks = codes_of(4, n * k), -(-n * k // size)
    state = {"quant_type": kind, "blocksize": size, "dtype": "bfloat16", "shape": [n, k]}
    absmax = scales_of(blocks, dtype=torch.float32)
    parts = {"weight.absmax": absmax, "weight.quant_map": values}
    if variant == "nf4_nested":
        state |= {"nested_blocksize": 8, "nested_dtype": "float32", "nested_offset": 0.25}
        nested = {"absmax": codes_of(8, blocks).byte(), "quant_map": values}
        nested |= {"nested_absmax": scales_of(4, dtype=torch.float32, seed=3)}
        nested |= {"nested_quant_map": torch.linspace(-1, 1, 256)}
        parts = {f"weight.{part}": tensor for part, tensor in nested.items()}
        whole = nested["nested_absmax"].repeat_interleave(8)
        absmax = nested["nested_quant_map"][nested["absmax"].long()] * whole + 0.25
    packed = torch.tensor([(a << 4) + b for a, b in codes.view(-1, 2).tolist()]).byte().view(-1, 1)
    parts["weight"] = (
        packed.view(-1, 2).view(torch.bfloat16) if variant == "nf4_in_bf16" else packed
    )
    text = torch.tensor([*json.dumps(state).encode()], dtype=torch.uint8)
    parts[f"weight.quant_state.bitsandbytes__{kind}"] = text
    each = absmax.double().repeat_interleave(size)[: n * k]
    return sample(config, parts, (values.double()[codes] * each).view(n, k))


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


OWN: dict[str, dict[str, Any]] = {
    "int4": {"type": "1x32 : f16 : ui4, zero = f16, zero_mode = rescale"},
    "int3_quantized": {"type": "1x16 : f32 : ui3, zero = ui3, zero_mode = quantized"},
    "int2_row": {"type": "1x? : bf16 : ui2, zero = bf16, zero_mode = original"},
    "int3_permuted": {"type": "1x16 : f16 : si3", "wrappers": [["Permuted", 1]]},
    "int8_prescaled": {"type": "2x8 : f16 : si8", "wrappers": [["Prescaled", None]]},
    "mxfp6_rotated": {"type": "1x16 : f8E8M0FNU : f6E3M2FN", "wrappers": [["Rotated", 16]]},
    "mxfp8": {"type": "1x16 : f8E8M0FNU : f8E5M2"},
    "nvfp4": {
        "type": "1x16 : f8E4M3FN : f4E2M1FN, global = f32",
        "activation": "f4E2M1FN g16 scale=f8E4M3FN tensor_scale=f32 "
        "quantizer=microscaling scale_rule=amax static=True",
    },
    "experts": {
        "type": "1x1x32 : f8E8M0FNU : f4E2M1FN",
        "shape": [2, 12, 96],
        "wrappers": [["Transposed", None]],
    },
    "both": {"type": "1x32 : f32 : si4", "wrappers": [["Prescaled", None], ["Permuted", 1]]},
}
"""Forms of gqc's own format, of a weight [12, 96]."""

OWN_SCALES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def own(form: dict[str, Any]) -> Sample:
    """A weight in gqc's own format, by what its description says."""
    form = {"shape": [12, 96], "wrappers": [], "activation": None, **form}
    blocks, scale_format, element = form["type"].split(", ")[0].split(" : ")
    options = dict(option.split(" = ") for option in form["type"].split(", ")[1:])
    shape = form["shape"]
    sizes = [n if b == "?" else int(b) for b, n in zip(blocks.split("x"), shape, strict=True)]
    counts = [n // b for n, b in zip(shape, sizes, strict=True)]
    bits = int(element[2:]) if "i" in element else int(element[1])
    codes = codes_of(bits, *shape)
    if bits == 8 and element != "si8":
        codes &= 0x77  # no NaN
    values = own_values(element, codes)
    if scale_format == "f8E8M0FNU":
        scale = e8m0(*counts)
        factor = torch.exp2(scale.double() - 127)
    elif scale_format == "f8E4M3FN":
        scale = e4m3(*counts)
        factor = scale.double()
    else:
        scale = scales_of(*counts, dtype=OWN_SCALES[scale_format])
        factor = scale.double()
    packed = packers.pack_bytes(codes.view(-1, shape[-1]), bits).view(*shape[:-1], -1)
    parts = {"codes": packed, "scale": scale}
    if element in ("f8E4M3FN", "f8E5M2"):
        parts["codes"] = packed.view(torch.float8_e5m2 if "E5" in element else torch.float8_e4m3fn)

    def each(part: torch.Tensor) -> torch.Tensor:
        for dim, size in enumerate(sizes):
            part = part.repeat_interleave(size, dim)
        return part

    match options.get("zero_mode", "none"):
        case "quantized":
            zero = codes_of(bits, *counts, seed=3)
            parts["zero"] = packers.pack_bytes(zero, bits)
            weight = (values - each(zero.double())) * each(factor)
        case "none":
            weight = values * each(factor)
        case mode:
            parts["zero"] = scales_of(*counts, dtype=OWN_SCALES[options["zero"]], seed=3)
            zero = each(parts["zero"].double())
            weight = (
                values * each(factor) + zero
                if mode == "rescale"
                else (values - zero) * each(factor)
            )
    if "global" in options:
        parts["tensor_scale"] = torch.tensor(0.0123)
        weight = weight * parts["tensor_scale"].double()
    if form["activation"]:
        parts["input_scale"] = torch.tensor(0.5)
    for kind, number in reversed(form["wrappers"]):
        weight, more = own_wrapped(kind, number, weight)
        parts |= more
    return own_sample(form, parts, weight)


def own_values(element: str, codes: torch.Tensor) -> torch.Tensor:
    """What codes stand for before scaling, float64."""
    if element == "f4E2M1FN":
        return packers.fp4_values(codes)
    if element == "f6E3M2FN":
        return ml_dtypes_values(codes, "float6_e3m2fn")
    if element == "f8E5M2":
        return codes.to(torch.uint8).view(torch.float8_e5m2).double()
    bits = int(element[2:])
    signed = element[0] == "s"
    return (
        torch.where(codes >> bits - 1 > 0, codes - (1 << bits), codes).double()
        if signed
        else codes.double()
    )


def ml_dtypes_values(codes: torch.Tensor, name: str) -> torch.Tensor:
    import ml_dtypes
    import numpy as np

    return torch.from_numpy(
        codes.numpy().astype(np.uint8).view(getattr(ml_dtypes, name)).astype(np.float64)
    )


def own_wrapped(
    kind: str, number: int | None, weight: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The model's weight of what is wrapped, and the wrapper's tensors."""
    k = weight.shape[-1]
    if kind == "Permuted":
        order = torch.randperm(k, generator=generator())
        model = torch.empty_like(weight)
        model[:, order] = weight
        return model, {"order": order.to(torch.int32)}
    if kind == "Prescaled":
        factor = scales_of(k, dtype=torch.float32, seed=5)
        return weight * factor.double(), {"factor": factor}
    if kind == "Rotated":
        assert number is not None
        signs = [[(-1.0) ** (i & j).bit_count() for j in range(number)] for i in range(number)]
        matrix = torch.tensor(signs, dtype=torch.float64) / number**0.5
        return (weight.view(len(weight), -1, number) @ matrix).view_as(weight), {}
    return weight.transpose(1, 2), {}


def own_sample(
    form: dict[str, Any], parts: dict[str, torch.Tensor], weight: torch.Tensor
) -> Sample:
    name, norm = f"{LAYER}.weight", scales_of(weight.shape[-1], seed=7)
    quantization = {"quant_method": "gqc", "version": 1, "forms": [form], "layers": {name: 0}}
    config = {"model_type": "llama", "quantization_config": quantization}
    tensors = {f"{name}.{part}": tensor.contiguous() for part, tensor in parts.items()}
    stored = save({**tensors, "model.norm.weight": norm})
    files = {"config.json": json.dumps(config).encode(), "model.safetensors": stored}
    return Sample(files, {name: weight, "model.norm.weight": norm})
