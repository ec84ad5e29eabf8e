"""Quark, AMD's: integers, FP8, MX formats and NVFP4, whose scales are all factors.

The config has how weights are quantized: of layers by patterns of their names, of layers by their
class, and of all the rest. Integers of 4 bits are packed eight in a word along the last dimension,
in the order of AWQ's kernels where `pack_method` is `reorder`; weights and scales in groups are
stored transposed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from gqc.checkpoints import microscaled
from gqc.checkpoints.awq import gemm_columns
from gqc.checkpoints.bits import unpack, words_of
from gqc.checkpoints.compressed_tensors import integers
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.fp8 import CACHE, float8, warn_of_cache
from gqc.checkpoints.reader import SCALES, Layer, Reader, warn_of_inputs
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import NVFP4, Scheme, mx

MX_ELEMENTS = {"fp4": "f4E2M1FN", "fp6_e3m2": "f6E3M2FN", "fp6_e2m3": "f6E2M3FN"}
INTEGERS = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}
SCHEMES = ("per_tensor", "per_channel", "per_group")
AXES = {"per_channel": (0, -2), "per_group": (-1, 1)}
"""Dimensions of a weight [N, K] that a scheme may be along."""
ZERO = "weight_zero_point"


@dataclass(frozen=True)
class Kind:
    """How a tensor is quantized: element, what shares a scale, elements of a group, scales."""

    dtype: str
    scheme: str
    group: int | None
    scale: str

    @staticmethod
    def of(spec: Any) -> Kind:
        """Raises GqcError if the config's description of a tensor is none."""
        if not isinstance(spec, dict):
            raise GqcError(f"quantization config: {spec!r} does not describe a tensor")
        group = option(spec, "group_size", int, 0) or None
        scheme, scale = option(spec, "qscheme", str, ""), option(spec, "scale_format", str, "")
        return Kind(option(spec, "dtype", str), scheme, group, scale)

    @property
    def is_mx(self) -> bool:
        return (
            self.dtype in MX_ELEMENTS
            and self.scheme == "per_group"
            and self.group == microscaled.MX_BLOCK
            and self.scale == "e8m0"
        )


Read = Callable[[Layer], BlockScaled]


def reader_of(spec: Any, reorder: bool) -> Read:
    """What reads a weight that is quantized as a config says. Raises GqcError on what is not read.

    reorder: whether columns in words are in the order of AWQ's kernels.
    """
    if is_nvfp4(spec):
        return lambda layer: microscaled.nvfp4(
            layer, "weight", "weight_scale", layer.number("weight_scale_2")
        )
    if not isinstance(spec, list):
        kind = Kind.of(spec)
        known, axis = AXES.get(kind.scheme, (None,)), spec.get("ch_axis")
        if axis not in (None, *known):
            raise GqcError(
                f"quantization config: {kind.scheme} along ch_axis {axis!r}, expected {known[0]}"
            )
        if kind.is_mx:
            element = MX_ELEMENTS[kind.dtype]
            return lambda layer: microscaled.mx(layer, "weight", "weight_scale", element)
        if kind.dtype.startswith("fp8_") and kind.scheme != "per_group":
            return lambda layer: float8(layer, "weight_scale")
        if kind.dtype in INTEGERS and kind.scheme in SCHEMES:
            return lambda layer: integer(layer, kind, reorder)
    raise GqcError(
        f"quantization config: weights {spec!r} are not read, but {', '.join(INTEGERS)}, fp8_e4m3, "
        "fp4 and fp6 under e8m0, and fp4 under fp8: export the model in one of these"
    )


def is_nvfp4(spec: Any) -> bool:
    """Whether a tensor is of fp4 in groups of 16 with scales in fp8, and a scale for all."""
    if not isinstance(spec, list) or len(spec) != 2:
        return False
    codes, scales = map(Kind.of, spec)
    grouped = codes.dtype == "fp4" and codes.group == microscaled.NVFP4_BLOCK
    return grouped and scales.dtype == "fp8_e4m3" and scales.scheme == "per_tensor"


def integer(layer: Layer, kind: Kind, reorder: bool) -> BlockScaled:
    """`(q − z) · s`. weight [N, K], weight_scale [] or [N]; in groups [K, N] and [K/g, N].

    Of 4 bits there are words of eight, i32, along the last dimension; zero points are as scales.
    """
    bits = INTEGERS[kind.dtype]
    lift = 0 if kind.dtype.startswith("u") else 1 << bits - 1  # makes signed codes unsigned

    def codes(part: str, rows: int, columns: int, *shapes: tuple[int, ...]) -> torch.Tensor:
        if bits == 8:
            stored = layer.read(part, ["I8" if lift else "U8"], (rows, columns), *shapes)
            return stored.view(torch.uint8).reshape(rows, columns) ^ lift
        width = words_of(columns, bits)
        flat = [(width,)] if shapes else []
        words = layer.read(part, ["I32"], (rows, width), *flat).reshape(rows, width)
        found = gemm_columns(words) if reorder else unpack(words, bits, width * 32 // bits)
        return found[:, :columns] ^ lift

    rows, columns = layer.spec("weight", 2).shape
    if kind.scheme == "per_group":
        k, (blocks, n) = rows, layer.spec("weight_scale", 2).shape
        group = kind.group or k
        if k != blocks * group:
            raise layer.error("weight_scale", f"is {[blocks, n]}, for K = {k} in groups of {group}")
        weight = codes("weight", k, n).T.contiguous()
        scale = layer.read("weight_scale", SCALES, (blocks, n)).T.contiguous()
        zero = codes(ZERO, blocks, n).T.contiguous() if layer.has(ZERO) else None
        return of_codes(layer, weight, scale, zero, bits, lift, (1, group))
    n, k = rows, columns * (1 if bits == 8 else 8)
    weight = codes("weight", n, k).contiguous()
    if kind.scheme == "per_channel":
        scale = layer.read("weight_scale", SCALES, (n,), (n, 1)).reshape(n, 1)
        zero = codes(ZERO, 1, n, (n,), (n, 1)).reshape(n, 1) if layer.has(ZERO) else None
        return of_codes(layer, weight, scale, zero, bits, lift, (1, None))
    scale = layer.read("weight_scale", SCALES, (), (1,)).reshape(1, 1)
    zero = None
    if layer.has(ZERO):
        zero = layer.read(ZERO, ("I8", "U8", "I32"), (), (1,)).reshape(1, 1).int() + lift
        if not 0 <= int(zero) < 1 << bits:
            raise layer.error(ZERO, f"is {int(zero) - lift}, of {kind.dtype}")
        zero = zero.byte()
    return of_codes(layer, weight, scale, zero, bits, lift, (None, None))


def of_codes(
    layer: Layer,
    codes: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor | None,
    bits: int,
    lift: int,
    block: tuple[int | None, int | None],
) -> BlockScaled:
    """A weight of codes and zero points with `lift` added; zero points of 0 are left out."""
    if zero is None and not lift:
        raise layer.error(ZERO, "is missing, of unsigned weights")
    plain = zero is None or bool((zero == lift).all())
    return integers(codes, scale, None if plain and lift else zero, bits, block)


class Quark(Reader):
    PARTS = frozenset(
        {
            *("weight_scale", "weight_scale_2", ZERO),
            *("input_scale", "input_scale_2", "input_zero_point"),
        }
    )
    KEYS = frozenset({"weight_scale"})
    HIDDEN = frozenset({*CACHE, "prob_output_scale"}) | frozenset(
        f"output_{part}" for part in ("scale", "scale_2", "zero_point")
    )

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        rotated = (name for name in tensors.specs if name.endswith(".input_rotation"))
        if (name := next(rotated, None)) is not None:
            raise tensors.error(name, "rotates inputs, which is not read: export without rotations")
        export = option(quantization, "export", dict, {})
        method = option(export, "pack_method", str, "reorder")
        if method not in ("order", "reorder"):
            raise GqcError(f"quantization config: pack_method is {method!r}, not order, reorder")
        self.reorder = method == "reorder"
        if option(export, "weight_format", str, "real_quantized") != "real_quantized":
            raise GqcError("quantization config: weight_format must be real_quantized")
        named = option(quantization, "layer_quant_config", dict, {})
        kinds = option(quantization, "layer_type_quant_config", dict, {})
        usual = option(quantization, "global_quant_config", dict, {})
        self.patterns: dict[str, Any] = {**named, "*": kinds.get("Linear") or usual}
        for each in self.patterns.values():
            if isinstance(each, dict) and each.get("weight"):
                reader_of(each["weight"], self.reorder)  # raises on what is not read
            if isinstance(each, dict) and each.get("bias"):
                raise GqcError("quantization config: biases are quantized, which is not read")
        warn_of_cache(tensors, self.HIDDEN)

    def config_of(self, layer: Layer) -> dict[str, Any]:
        """How the config says that a layer is quantized. Raises GqcError if it does not."""
        found = (c for pattern, c in self.patterns.items() if fnmatchcase(layer.name, pattern))
        config = next(found)
        if not isinstance(config, dict) or not config.get("weight"):
            raise layer.error("weight", "is quantized, but the config does not say how")
        return config

    def weight(self, layer: Layer) -> BlockScaled:
        return reader_of(self.config_of(layer)["weight"], self.reorder)(layer)

    def activation(self, name: str) -> Scheme | None:
        layer = self.quantized(name)
        spec = self.config_of(layer).get("input_tensors") if layer else None
        if layer is None or not spec:
            return None
        if is_nvfp4(spec):
            return replace(NVFP4, static=layer.is_static("input_scale_2"))
        kinds = [Kind.of(each) for each in (spec if isinstance(spec, list) else [spec])]
        if len(kinds) == 1 and kinds[0].is_mx:
            return mx(MX_ELEMENTS[kinds[0].dtype], "even")
        warn_of_inputs(" under ".join(kind.dtype for kind in kinds))
        return None

    def input_scale(self, name: str) -> torch.Tensor | None:
        layer = self.quantized(name)
        spec = self.config_of(layer).get("input_tensors") if layer else None
        return layer.calibrated("input_scale_2") if layer and is_nvfp4(spec) else None
