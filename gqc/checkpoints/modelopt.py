"""ModelOpt: NVFP4, MX formats, FP8 and integers, whose scales are all factors.

Weights that AWQ or SmoothQuant scaled where no norm before could take the other half have a
`pre_quant_scale` [K], by which inputs are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch

from gqc.checkpoints import microscaled, stacks
from gqc.checkpoints.bits import unpack
from gqc.checkpoints.configs import refuse_low_rank
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.fp8 import BLOCK, CACHE, float8, warn_of_cache
from gqc.checkpoints.reader import SCALES, Layer, Reader, Stack, warn_of_inputs
from gqc.checkpoints.stacks import Stacked
from gqc.checkpoints.weights import Prescaled, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import NVFP4, Scheme, mx


def nvfp4(layer: Layer, group: int | None) -> BlockScaled:
    """weight u8 [N, K/2], weight_scale e4m3 [N, K/16], weight_scale_2, a factor."""
    return microscaled.nvfp4(layer, "weight", "weight_scale", layer.number("weight_scale_2"))


def mx_weight(element: str) -> Callable[[Layer, int | None], BlockScaled]:
    """weight e4m3 [N, K], or u8 [N, K·b/8], and weight_scale e8m0 [N, K/32]."""
    return lambda layer, group: microscaled.mx(layer, "weight", "weight_scale", element)


def int4(layer: Layer, group: int | None) -> BlockScaled:
    """weight u8 [N/2, K], two rows in a byte, the even one low; weight_scale [N, K/g].

    A weight_scale_2 is of the FP8 that products are computed in: codes · weight_scale is the weight
    all the same.
    """
    half, k = layer.spec("weight", 2).shape
    n, blocks = layer.spec("weight_scale", 2).shape
    if n != 2 * half or k % blocks or (group is not None and k // blocks != group):
        said = f", in groups of {group} as the config says" if group else ""
        raise layer.error("weight_scale", f"is {[n, blocks]} for N = {2 * half}, K = {k}{said}")
    stored = layer.read("weight", ["U8"], (half, k))
    codes = unpack(stored.unsqueeze(-1), 4, 2).transpose(1, 2).reshape(n, k)
    signed = (codes ^ 8).view(torch.int8) - 8
    scale = layer.read("weight_scale", SCALES, (n, blocks))
    return block_scaled("si4", (1, k // blocks), signed, scale)


def int8(layer: Layer, group: int | None) -> BlockScaled:
    """weight i8 [N, K], weight_scale [N]."""
    n, k = layer.spec("weight", 2).shape
    codes = layer.read("weight", ["I8"], (n, k))
    scale = layer.read("weight_scale", SCALES, (n,), (n, 1)).reshape(n, 1)
    return block_scaled("si8", (1, None), codes, scale)


def fp8(layer: Layer, group: int | None) -> BlockScaled:
    """weight e4m3 [N, K]; weight_scale [], [N], or for blocks [⌈N/g⌉, 1, ⌈K/g⌉, 1]."""
    return float8(layer, "weight_scale", (group, group) if group else BLOCK)


@dataclass(frozen=True)
class Algorithm:
    """One row: what reads a weight; how inputs are quantized, or what of it is left undone."""

    read: Callable[[Layer, int | None], BlockScaled]
    inputs: Scheme | None = None
    left: str = ""


ALGORITHMS: dict[str, Algorithm] = {
    "NVFP4": Algorithm(nvfp4, NVFP4),
    "NVFP4_AWQ": Algorithm(nvfp4, NVFP4),
    "W4A16_NVFP4": Algorithm(nvfp4),
    "W4A8_NVFP4_FP8": Algorithm(nvfp4, left="FP8"),
    "MXFP8": Algorithm(mx_weight("f8E4M3FN"), mx("f8E4M3FN", "rceil")),
    # Which does not tell weights alone from weights and inputs.
    "MXFP4": Algorithm(mx_weight("f4E2M1FN"), left="MXFP4"),
    "W4A16_MXFP4": Algorithm(mx_weight("f4E2M1FN")),
    "W4A8_MXFP4_MXFP8": Algorithm(mx_weight("f4E2M1FN"), mx("f8E4M3FN", "rceil")),
    "W4A8_MXFP4_FP8": Algorithm(mx_weight("f4E2M1FN"), left="FP8"),
    "FP8": Algorithm(fp8, left="FP8"),
    "FP8_PER_CHANNEL_PER_TOKEN": Algorithm(fp8, left="FP8"),
    "FP8_PC_PT": Algorithm(fp8, left="FP8"),
    "FP8_PB_WO": Algorithm(fp8),
    "FP8_PB_REAL": Algorithm(fp8),
    "W4A16_AWQ": Algorithm(int4),
    "INT4_AWQ": Algorithm(int4),
    "W4A8_AWQ": Algorithm(int4, left="FP8"),
    "W8A16": Algorithm(int8),
    "W8A8_SQ_PER_CHANNEL": Algorithm(int8, left="int8"),
}
"""What is known of a layer, by `quant_algo` of the config."""

STACKED: dict[str, Callable[[Stack], Stacked]] = {
    **dict.fromkeys(("NVFP4", "NVFP4_AWQ", "W4A16_NVFP4", "W4A8_NVFP4_FP8"), stacks.nvfp4),
    **dict.fromkeys(("MXFP4", "W4A16_MXFP4", "W4A8_MXFP4_MXFP8", "W4A8_MXFP4_FP8"), stacks.mxfp4),
    **dict.fromkeys(
        ("FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PC_PT", "FP8_PB_WO", "FP8_PB_REAL"),
        lambda stack: stacks.float8(stack, "weight_scale", BLOCK),
    ),
}
"""What reads weights of all experts of a layer in one parameter."""

MIXED = "MIXED_PRECISION"


class Modelopt(Reader):
    PARTS = frozenset({"weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"})
    HIDDEN = frozenset(CACHE)
    STACKS = True

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        refuse_low_rank(tensors.paths[0], tensors.specs)
        self.algorithm = None
        if quantization.get("quant_algo") is not None or not self.is_dense():
            self.algorithm = algorithm(quantization, (MIXED, *ALGORITHMS))
        layers = option(quantization, "quantized_layers", dict, {})
        self.layers = {name: value for name, value in layers.items() if isinstance(value, dict)}
        warn_of_cache(tensors)

    def is_dense(self) -> bool:
        """Whether no weight is quantized, as where only the cache is."""
        return not any(name.endswith("weight_scale") for name in self.tensors.specs)

    def config_of(self, layer: Layer) -> dict[str, Any]:
        """What the config says of a layer."""
        if self.algorithm != MIXED:
            return self.quantization
        module = layer.name.rpartition(".")[0] if isinstance(layer, Stack) else ""
        for name in (layer.name, module):
            if name in self.layers:
                return self.layers[name]
        for pattern, config in self.layers.items():
            if fnmatchcase(layer.name, pattern):
                return config
        raise layer.error("weight", "is quantized, but the config does not name its layer")

    def weight(self, layer: Layer) -> Stacked | Prescaled:
        config = self.config_of(layer)
        group = option(config, "group_size", int, 0) or None
        name = algorithm(config, tuple(ALGORITHMS))
        if isinstance(layer, Stack):
            if name not in STACKED or layer.has("pre_quant_scale"):
                raise layer.error(
                    "weight",
                    f"is of experts, in {name}: only {', '.join(STACKED)} are read in one "
                    "parameter: export them apart",
                )
            return STACKED[name](layer)
        weight = ALGORITHMS[name].read(layer, group)
        if not layer.has("pre_quant_scale"):
            return weight
        factor = layer.read("pre_quant_scale", SCALES, (weight.codes.shape[1],))
        return Prescaled(weight, factor)

    def row(self, name: str) -> Algorithm | None:
        """What is known of the layer of a weight; None of one that is not quantized."""
        layer = self.quantized(name)
        if layer is None:
            return None
        return ALGORITHMS[algorithm(self.config_of(layer), tuple(ALGORITHMS))]

    def activation(self, name: str) -> Scheme | None:
        layer, row = self.quantized(name), self.row(name)
        if layer is None or row is None:
            return None
        if row.left:
            warn_of_inputs(row.left)
        if row.inputs is None or not row.inputs.tensor_scale:
            return row.inputs
        return replace(row.inputs, static=layer.is_static("input_scale"))

    def input_scale(self, name: str) -> torch.Tensor | None:
        layer, row = self.quantized(name), self.row(name)
        if layer is None or row is None or row.inputs is None or not row.inputs.tensor_scale:
            return None
        return layer.calibrated("input_scale")


def algorithm(config: dict[str, Any], known: tuple[str, ...]) -> str:
    """The name of an algorithm in a config. Raises GqcError if it is not known."""
    name = option(config, "quant_algo", str).upper()
    if name not in known:
        raise GqcError(f"quantization config: quant_algo is {name!r}, not {', '.join(known)}")
    return name
