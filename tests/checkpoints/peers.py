"""Samples that the formats' own libraries wrote, with what these read from them."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import torchao.quantization as ao
from checkpoints.sample import LAYER, Sample, generator, sample, scales_of
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import (
    QuantizationArgs,
    QuantizationScheme,
    QuantizationStrategy,
)
from compressed_tensors.quantization.quant_scheme import MXFP4, MXFP8, NVFP4
from gguf import GGMLQuantizationType as Type
from torchao.prototype.mx_formats.config import ScaleCalculationMode
from torchao.prototype.mx_formats.mx_tensor import MXTensor, QuantizeTensorToMXKwargs
from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, QuantizeTensorToNVFP4Kwargs
from torchao.prototype.safetensors.safetensors_support import flatten_tensor_state_dict
from torchao.quantization.granularity import PerRow, PerTensor
from torchao.quantization.quant_primitives import MappingType
from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

N, K = 48, 192
flatten: Any = flatten_tensor_state_dict  # annotated with plain tensors only


def weight(n: int = N, k: int = K) -> torch.Tensor:
    return torch.randn(n, k, generator=generator(11))


def compressed(form: str, dtype: torch.dtype = torch.bfloat16, **arguments: Any) -> Sample:
    """A weight compressed by compressed-tensors with scales of ours, and decompressed by it."""
    arguments = {"type": "int", "num_bits": 4, "symmetric": True, **arguments}
    inputs = arguments.pop("inputs", None)
    args = QuantizationArgs(**arguments)
    scheme = QuantizationScheme(targets=["Linear"], weights=args, input_activations=inputs)
    n, k = N, K
    shape = {
        "tensor": (1,),
        "channel": (n, 1),
        "block": (2, 3),
    }.get(str(args.strategy), (n, k // (args.group_size or 1)))
    state = {"weight": weight(n, k).to(dtype), "weight_scale": scales_of(*shape, dtype=dtype)}
    if form.startswith("mx"):
        state["weight_scale"] = torch.exp2(
            scales_of(*shape, dtype=torch.float32).mul(40).round() - 3
        )
    if form.startswith("nvfp4"):
        state["weight_global_scale"] = torch.tensor([37.3])
        state["weight_scale"] = scales_of(*shape, dtype=torch.float32) * 100
    if not args.symmetric:
        half = 1 << args.num_bits - 1
        zero = torch.randint(-half, half, shape, generator=generator(5))
        state["weight_zero_point"] = zero.to(torch.int8)
    compressor: Any = BaseCompressor.get_value_from_registry(form)
    parts = compressor.compress(state, scheme)
    expected = compressor.decompress(parts, scheme)["weight"]
    if form.startswith("nvfp4"):
        parts["input_global_scale"] = torch.tensor([8.0])
        expected = by_the_reciprocal(parts, expected)
    config = {
        "quant_method": "compressed-tensors",
        "format": form,
        "config_groups": {"group_0": json.loads(scheme.model_dump_json())},
        "ignore": ["lm_head"],
    }
    return sample(config, {name: part.detach() for name, part in parts.items()}, expected.detach())


def by_the_reciprocal(parts: dict[str, torch.Tensor], divided: torch.Tensor) -> torch.Tensor:
    """What NVFP4 stands for when its global scale is a factor of float32(1 / global).

    The library divides in bfloat16 and float32: no format of ours holds a divisor.
    """
    codes = unpack_fp4_from_uint8(parts["weight_packed"], N, K).double()
    scale = parts["weight_scale"].double().repeat_interleave(16, 1)
    exact = codes * scale * parts["weight_global_scale"].reciprocal().double()
    torch.testing.assert_close(exact.to(divided.dtype), divided, rtol=2**-7, atol=0)
    return exact


COMPRESSED_TENSORS: dict[str, Callable[[], Sample]] = {
    **{
        f"pack_{bits}bit{'' if sym else '_asym'}": (
            lambda bits=bits, sym=sym: compressed(
                "pack-quantized", num_bits=bits, symmetric=sym, strategy="group", group_size=32
            )
        )
        for bits in (1, 2, 3, 4, 5, 8)
        for sym in (True, False)
    },
    "pack_channel": lambda: compressed("pack-quantized", strategy="channel", symmetric=False),
    "int_channel": lambda: compressed("int-quantized", num_bits=8, strategy="channel"),
    "int_asym": lambda: compressed(
        "int-quantized", num_bits=8, strategy="channel", symmetric=False
    ),
    "int_tensor_f32": lambda: compressed(
        "int-quantized", torch.float32, num_bits=8, strategy="tensor"
    ),
    "float_tensor": lambda: compressed(
        "float-quantized", type="float", num_bits=8, strategy="tensor"
    ),
    "float_channel": lambda: compressed(
        "float-quantized", type="float", num_bits=8, strategy="channel"
    ),
    "float_block": lambda: compressed(
        "float-quantized", type="float", num_bits=8, strategy="block", block_structure=[32, 64]
    ),
    "nvfp4": lambda: compressed(
        "nvfp4-pack-quantized",
        type="float",
        strategy="tensor_group",
        group_size=16,
        inputs=NVFP4["input_activations"],
    ),
    "mxfp4": lambda: compressed(
        "mxfp4-pack-quantized", type="float", strategy="group", group_size=32
    ),
    **{
        f"mxfp{bits}_inputs": lambda bits=bits, inputs=inputs: compressed(
            f"mxfp{bits}-pack-quantized" if bits == 4 else "mxfp8-quantized",
            type="float",
            num_bits=bits,
            strategy="group",
            group_size=32,
            inputs=inputs["input_activations"],
        )
        for bits, inputs in ((4, MXFP4), (8, MXFP8))
    },
    "int_inputs": lambda: compressed(
        "int-quantized",
        num_bits=8,
        strategy="channel",
        inputs=QuantizationArgs(num_bits=8, strategy=QuantizationStrategy.TOKEN, dynamic=True),
    ),
    "mxfp6": lambda: compressed(
        "mxfp6-pack-quantized", type="float", num_bits=6, strategy="group", group_size=32
    ),
    "mxfp8": lambda: compressed(
        "mxfp8-quantized", type="float", num_bits=8, strategy="group", group_size=32
    ),
}


def torchao(tensor: torch.Tensor) -> Sample:
    """A tensor subclass as torchao flattens it, and dequantizes it."""
    tensors, metadata = flatten({f"{LAYER}.weight": tensor})
    dequantize: Any = tensor.dequantize
    takes_dtype = isinstance(tensor, (NVFP4Tensor, MXTensor))
    expected = dequantize(torch.float32) if takes_dtype else dequantize()
    parts = {name.removeprefix(f"{LAYER}."): part for name, part in tensors.items()}
    return sample({"quant_method": "torchao"}, parts, expected, metadata)


def nvfp4(n: int = N, tensor_scale: float | None = 0.0123, **arguments: Any) -> Sample:
    factor = None if tensor_scale is None else torch.tensor(tensor_scale)
    return torchao(NVFP4Tensor.to_nvfp4(weight(n), per_tensor_scale=factor, **arguments))


def mx(dtype: torch.dtype, **arguments: Any) -> Sample:
    return torchao(MXTensor.to_mx(weight(), dtype, **arguments))


def intx(bits: int, mapping: MappingType, group: int = 32) -> Sample:
    dtype = getattr(torch, f"int{bits}")
    quantize: Any = ao.IntxUnpackedToInt8Tensor.from_hp
    return torchao(quantize(weight(), (1, group), dtype, mapping_type=mapping))


def int4() -> Sample:
    """torchao has no dequantization of this class: its kernel computes q · s + z."""
    codes = torch.randint(-8, 8, (N, K), generator=generator(3))
    scale = scales_of(K // 32, N, dtype=torch.bfloat16)
    zero = scales_of(K // 32, N, dtype=torch.bfloat16, seed=4)
    packed = (codes[:, ::2] & 15 | (codes[:, 1::2] & 15) << 4).to(torch.uint8).view(torch.int8)
    tensor = ao.Int4Tensor(packed, scale, zero, [1, 32], torch.Size([N, K]))
    tensors, metadata = flatten({f"{LAYER}.weight": tensor})
    parts = {name.removeprefix(f"{LAYER}."): part for name, part in tensors.items()}
    spread = [part.T.double().repeat_interleave(32, 1) for part in (scale, zero)]
    expected = codes * spread[0] + spread[1]
    return sample({"quant_method": "torchao"}, parts, expected, metadata)


STATIC = {
    "act_per_tensor_scale": torch.tensor(0.25),
    "act_quant_kwargs": QuantizeTensorToNVFP4Kwargs(),
}
RCEIL = QuantizeTensorToMXKwargs(scaling_mode=ScaleCalculationMode.RCEIL)

TORCHAO: dict[str, Callable[[], Sample]] = {
    "nvfp4": nvfp4,
    "nvfp4_swizzled_static": lambda: nvfp4(160, is_swizzled_scales=True, **STATIC),
    "nvfp4_without": lambda: nvfp4(tensor_scale=None),
    "mxfp4": lambda: mx(torch.float4_e2m1fn_x2),
    "mxfp8": lambda: mx(torch.float8_e4m3fn, act_quant_kwargs=RCEIL),
    "mxfp8_e5m2_swizzled": lambda: mx(torch.float8_e5m2, is_swizzled_scales=True),
    **{
        f"int{bits}_{mapping.name.lower()}": (
            lambda bits=bits, mapping=mapping: intx(bits, mapping)
        )
        for bits in (2, 3, 4, 6, 8)
        for mapping in (MappingType.SYMMETRIC, MappingType.ASYMMETRIC)
    },
    "int4": int4,
    "int8_row": lambda: torchao(ao.Int8Tensor.from_hp(weight(), PerRow())),
    "int8_tensor": lambda: torchao(ao.Int8Tensor.from_hp(weight(), PerTensor())),
    "int8_row_asymmetric": lambda: torchao(
        ao.Int8Tensor.from_hp(weight(), PerRow(), mapping_type=MappingType.ASYMMETRIC)
    ),
    "float8_row": lambda: torchao(ao.Float8Tensor.from_hp(weight())),
    "float8_inputs": lambda: torchao(
        ao.Float8Tensor.from_hp(weight(), act_quant_kwargs=QuantizeTensorToFloat8Kwargs())
    ),
    "float8_tensor": lambda: torchao(ao.Float8Tensor.from_hp(weight(), granularity=PerTensor())),
}

F16_AT = {
    **{Type.Q4_0: (0,), Type.Q4_1: (0, 2), Type.Q5_0: (0,), Type.Q5_1: (0, 2), Type.Q8_0: (0,)},
    **{Type.Q4_K: (0, 2), Type.Q5_K: (0, 2), Type.Q6_K: (208,), Type.Q2_K: (80, 82)},
    **{Type.Q3_K: (108,), Type.IQ4_NL: (0,), Type.IQ4_XS: (0,), Type.TQ2_0: (64,)},
    **{Type.IQ3_S: (0,), Type.IQ2_XXS: (0,)},
}
"""Where blocks have f16 numbers, which bytes at random would make inf or NaN."""


def blocks_of(type: Type, n: int, k: int) -> np.ndarray:
    """Bytes at random [N, bytes of a row], with sensible scales."""
    elements, size = gguf.GGML_QUANT_SIZES[type]
    random = np.random.default_rng(int(type))
    if type not in (*F16_AT, Type.MXFP4, Type.NVFP4):
        return gguf.quants.quantize(random.standard_normal((n, k), dtype=np.float32), type)
    raw = random.integers(0, 256, (n, k // elements, size), dtype=np.uint8)
    for at in F16_AT.get(type, ()):
        numbers = random.standard_normal((n, k // elements, 1)).astype(np.float16)
        raw[..., at : at + 2] = numbers.view(np.uint8)
    if type == Type.NVFP4:  # scales have no sign, and 0x7F is none
        raw[..., :4] = random.integers(0, 0x80, raw[..., :4].shape)
    if type == Type.MXFP4:
        raw[..., 0] = random.integers(0, 250, raw.shape[:2])
    return raw.reshape(n, -1)


def gguf_file(type: Type, architecture: str = "llama") -> Sample:
    """A file with every kind of tensor of a layer, its weights in blocks of one type."""
    heads, kv_heads, n, k = 4, 2, 32, 256
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(1)
        writer.add_embedding_length(k)
        writer.add_head_count(heads)
        writer.add_head_count_kv(kv_heads)
        writer.add_token_list(["a", "bc", "def"])
        parameters: dict[str, torch.Tensor] = {}
        for name, stored, rows, h in (
            ("model.embed_tokens", "token_embd", n, 0),
            ("model.layers.0.self_attn.q_proj", "blk.0.attn_q", n, heads),
            ("model.layers.0.self_attn.k_proj", "blk.0.attn_k", n // 2, kv_heads),
            ("model.layers.0.mlp.down_proj", "blk.0.ffn_down", n, 0),
        ):
            raw = blocks_of(type, rows, k)
            writer.add_tensor(f"{stored}.weight", raw, raw_dtype=type)
            values = torch.from_numpy(gguf.quants.dequantize(raw, type))
            if h and architecture == "llama":  # pairs (0, 1), (2, 3), … to halves
                pairs = values.view(h, rows // h // 2, 2, k)
                values = torch.cat([pairs[:, :, 0], pairs[:, :, 1]], 1).reshape(rows, k)
            parameters[f"{name}.weight"] = values
        for name, stored, dtype in (
            ("model.norm", "output_norm", np.float32),
            ("model.layers.0.input_layernorm", "blk.0.attn_norm", np.float16),
        ):
            values = np.arange(k).astype(dtype)
            writer.add_tensor(f"{stored}.weight", values)
            parameters[f"{name}.weight"] = torch.from_numpy(values)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return Sample({"model.gguf": path.read_bytes()}, parameters)


GGUF: dict[str, Callable[[], Sample]] = {
    **{
        type.name.lower(): lambda type=type: gguf_file(type)
        for type in (*F16_AT, Type.MXFP4, Type.NVFP4, Type.F32, Type.F16, Type.BF16)
    },
    "qwen3": lambda: gguf_file(Type.Q8_0, "qwen3"),
}
