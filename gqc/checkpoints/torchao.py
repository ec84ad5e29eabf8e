"""torchao's safetensors: the parts of each tensor subclass, and its attributes in the metadata."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from gqc.checkpoints import microscaled
from gqc.checkpoints.awq import SCALES
from gqc.checkpoints.bits import unpack
from gqc.checkpoints.compressed_tensors import integers, lifted
from gqc.checkpoints.files import Tensors
from gqc.checkpoints.reader import Layer, Reader, warn_of_inputs
from gqc.checkpoints.weights import Prescaled, Weight, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.byte_layouts import SCALE_PLACES
from gqc.schemes import NVFP4, Scheme, mx

MX_ELEMENTS = {
    "float4_e2m1fn_x2": "f4E2M1FN",
    "float8_e4m3fn": "f8E4M3FN",
    "float8_e5m2": "f8E5M2",
}
"""Elements of MXTensor by dtype."""

ROUNDINGS = ("floor", "ceil", "even", "rceil")


@dataclass(frozen=True)
class Subclass:
    """A tensor subclass in a file: its class, attributes, and the parts `<prefix><part>`."""

    layer: Layer
    leaf: str
    kind: str
    data: dict[str, Any]

    def part(self, name: str) -> str:
        return f"_{self.leaf}_{name}"

    def has(self, name: str) -> bool:
        return self.layer.has(self.part(name))

    def error(self, text: str) -> GqcError:
        return self.layer.error(self.part("qdata"), f"({self.kind}) {text}")

    def name_of(self, key: str) -> str:
        """A dtype or a member of an enumeration among the attributes."""
        value = self.data.get(key)
        name = value.get("_data") if isinstance(value, dict) else None
        if not isinstance(name, str):
            raise self.error(f"has {key} = {value!r} in its metadata, expected a name")
        return name

    def arguments(self, key: str) -> dict[str, Any] | None:
        """Attributes of an object among the attributes, None if it is null."""
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, dict) or not isinstance(value.get("_data"), dict):
            raise self.error(f"has {key} = {value!r} in its metadata, expected an object")
        return value["_data"]

    def block(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The block, as the metadata says."""
        block = self.data.get("block_size")
        extents = block if isinstance(block, list) and len(block) == 2 else [0, 0]
        if any(type(b) is not int or b < 1 or n % b for n, b in zip(shape, extents, strict=True)):
            raise self.error(f"has block_size {block!r} in its metadata, for a weight {[*shape]}")
        return extents[0], extents[1]

    def scales(self, name: str, dtypes: tuple[str, ...], n: int, k: int) -> torch.Tensor:
        """Block scales [N, K/B], which may be swizzled."""
        if not self.data.get("is_swizzled_scales"):
            return self.layer.read(self.part(name), dtypes, (n, k))
        place = SCALE_PLACES["swizzle_32_4_4"]
        spec, shape = self.layer.spec(self.part(name)), place.shape(n, k)
        if math.prod(spec.shape) != math.prod(shape):
            raise self.error(f"has scales {spec}, expected swizzled ones of {[n, k]}")
        stored = self.layer.read(self.part(name), dtypes, spec.shape)
        return place.take(stored.reshape(shape), n, k)


def nvfp4(tensor: Subclass) -> BlockScaled:
    """qdata [N, K/2], scale e4m3 [N, K/16], per_tensor_scale a factor."""
    codes = microscaled.codes_of(tensor.layer, tensor.part("qdata"), "f4E2M1FN", 16)
    n, k = codes.shape
    scale = tensor.scales("scale", ("F8_E4M3",), n, k // 16)
    scale = microscaled.positive(tensor.layer, tensor.part("scale"), scale)
    part = tensor.part("per_tensor_scale")
    factor = tensor.layer.number(part) if tensor.has("per_tensor_scale") else None
    return block_scaled("f4E2M1FN", (1, 16), codes, scale, tensor_scale=factor)


def mx_tensor(tensor: Subclass) -> BlockScaled:
    """qdata [N, K·b/8] of fp4 or fp8, scale e8m0 [N, K/32]."""
    dtype = tensor.name_of("elem_dtype")
    if dtype not in MX_ELEMENTS or tensor.data.get("block_size") != microscaled.MX_BLOCK:
        raise tensor.error(f"is of {dtype}, in blocks of {tensor.data.get('block_size')!r}")
    element = MX_ELEMENTS[dtype]
    codes = microscaled.codes_of(tensor.layer, tensor.part("qdata"), element, 32)
    n, k = codes.shape
    scale = tensor.scales("scale", microscaled.E8M0, n, k // 32).view(torch.float8_e8m0fnu)
    return block_scaled(element, (1, 32), codes, scale)


def int4(tensor: Subclass) -> BlockScaled:
    """qdata [N, K/2] in two's complement, scale and zero_point [K/g, N]; q · s + z."""
    layer, part = tensor.layer, tensor.part("qdata")
    n, half = layer.spec(part, 2).shape
    rows, group = tensor.block((n, 2 * half))
    if rows != 1:
        raise tensor.error(f"has blocks of {rows} rows")
    stored = layer.read(part, ["U8", "I8"], (n, half)).view(torch.uint8)
    codes = (unpack(stored, 4, 2 * half) ^ 8).view(torch.int8) - 8
    shape = (2 * half // group, n)
    scale, zero = (
        layer.read(tensor.part(name), SCALES, shape).T.contiguous()
        for name in ("scale", "zero_point")
    )
    return block_scaled("si4", (1, group), codes, scale, zero, "rescale")


def intx(tensor: Subclass) -> BlockScaled:
    """qdata i8 [N, K], scale and zero_point [N/A, K/B]; (q − z) · s."""
    bits = {f"int{b}": b for b in range(1, 9)}.get(tensor.name_of("target_dtype"))
    if bits is None:
        raise tensor.error(f"is of {tensor.name_of('target_dtype')}, expected int1 … int8")
    return bytes_with_zeros(tensor, bits)


def int8(tensor: Subclass) -> BlockScaled:
    return bytes_with_zeros(tensor, 8)


def bytes_with_zeros(tensor: Subclass, bits: int) -> BlockScaled:
    """qdata i8 [N, K], scale [N/A, K/B], zero_point, of integers or floats, or none."""
    layer = tensor.layer
    n, k = layer.spec(tensor.part("qdata"), 2).shape
    block = tensor.block((n, k))
    shape = (n // block[0], k // block[1])
    flat = [shape, *([(shape[0],)] if shape[1] == 1 else []), *([()] if shape == (1, 1) else [])]
    stored = layer.read(tensor.part("qdata"), ["I8"], (n, k))
    scale = layer.read(tensor.part("scale"), SCALES, *flat).reshape(shape)
    if not tensor.has("zero_point"):
        codes = lifted(layer, tensor.part("qdata"), stored, bits)
        return integers(codes, scale, None, bits, block)
    zero = layer.read(tensor.part("zero_point"), ("I8", *SCALES), *flat).reshape(shape)
    codes = lifted(layer, tensor.part("qdata"), stored, bits)
    if zero.is_floating_point():
        width = integers(codes, scale, None, bits, block).type.format.name
        return block_scaled(width, block, stored, scale, zero, "original")
    lifted_zero = lifted(layer, tensor.part("zero_point"), zero, bits)
    return integers(codes, scale, lifted_zero if zero.any() else None, bits, block)


def float8(tensor: Subclass) -> BlockScaled:
    """qdata e4m3 [N, K], scale [N/A, K/B]."""
    layer = tensor.layer
    n, k = layer.spec(tensor.part("qdata"), 2).shape
    codes = layer.read(tensor.part("qdata"), ["F8_E4M3"], (n, k)).view(torch.uint8)
    block = tensor.block((n, k))
    shape = (n // block[0], k // block[1])
    single = [()] if shape == (1, 1) else []
    scale = layer.read(tensor.part("scale"), SCALES, shape, *single).reshape(shape)
    return block_scaled("f8E4M3FN", block, codes, scale)


SUBCLASSES: dict[str, Callable[[Subclass], BlockScaled]] = {
    "NVFP4Tensor": nvfp4,
    "MXTensor": mx_tensor,
    "Int4Tensor": int4,
    "IntxUnpackedToInt8Tensor": intx,
    "Int8Tensor": int8,
    "Float8Tensor": float8,
}
"""What reads each subclass; others are packed for one kernel."""


class Torchao(Reader):
    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        self.subclasses: dict[str, Subclass] = {}
        for name, text in tensors.metadata.items():
            if (entry := subclass_of(text)) is not None:
                module, _, leaf = name.rpartition(".")
                kind, data = entry
                self.subclasses[name] = Subclass(Layer(tensors, module), leaf, kind, data)
        self.prefixes = {s.layer.key(s.part("")): name for name, s in self.subclasses.items()}
        if not self.subclasses:
            raise GqcError("the safetensors hold no metadata of torchao's: save them with it")

    def owner(self, stored: str) -> str | None:
        """The subclass that a stored tensor is a part of."""
        module, _, leaf = stored.rpartition(".")
        pieces = leaf.split("_")
        prefixes = ("_".join(pieces[:i]) + "_" for i in range(2, len(pieces)))
        dotted = f"{module}." if module else ""
        known = (self.prefixes.get(dotted + prefix) for prefix in prefixes)
        return next((name for name in known if name is not None), None)

    def names(self) -> list[str]:
        names = (self.owner(stored) or stored for stored in self.tensors.specs)
        return list(dict.fromkeys([*names, *self.subclasses]))

    def read(self, name: str) -> Weight:
        tensor = self.subclasses.get(name)
        if tensor is None:
            return super().read(name)
        if tensor.kind not in SUBCLASSES:
            raise tensor.error(f"is packed for one kernel; save it as {', '.join(SUBCLASSES)}")
        weight = SUBCLASSES[tensor.kind](tensor)
        if not tensor.has("act_pre_scale"):
            return weight
        shapes = [(weight.codes.shape[1],), (1, weight.codes.shape[1])]
        factor = tensor.layer.read(tensor.part("act_pre_scale"), SCALES, *shapes)
        return Prescaled(weight, factor.flatten())

    def activation(self, name: str) -> Scheme | None:
        tensor = self.subclasses.get(name)
        arguments = tensor.arguments("act_quant_kwargs") if tensor else None
        if tensor is None or arguments is None:
            return None
        if tensor.kind == "NVFP4Tensor":
            static = tensor.layer.is_static(tensor.part("act_per_tensor_scale"))
            unseen = tensor.has("act_per_tensor_scale") and not static
            dynamic = unseen or arguments.get("use_dynamic_per_tensor_scale", False) is True
            return replace(NVFP4, tensor_scale=static or dynamic, static=static)
        if tensor.kind == "MXTensor":
            inputs = replace(tensor, data=arguments)
            element = MX_ELEMENTS.get(inputs.name_of("elem_dtype"))
            rounding = inputs.name_of("scaling_mode").lower()
            if element is None or rounding not in ROUNDINGS:
                raise tensor.error(f"has inputs of {element}, scales by {rounding!r}")
            return mx(element, rounding)
        warn_of_inputs(f"{tensor.kind}'s own")
        return None

    def input_scale(self, name: str) -> torch.Tensor | None:
        tensor = self.subclasses.get(name)
        return tensor.layer.calibrated(tensor.part("act_per_tensor_scale")) if tensor else None


def subclass_of(text: str) -> tuple[str, dict[str, Any]] | None:
    """Class and attributes that an entry of the metadata is of; None for other entries."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("_type"), str):
        return None
    kind, data = entry["_type"], entry.get("_data")
    return (kind, data) if kind != "Tensor" and isinstance(data, dict) else None
