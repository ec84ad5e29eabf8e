"""ModelOpt: NVFP4 and INT4-AWQ, whose scales are all factors, and FP8 with one scale a tensor.

Weights that AWQ scaled where no norm before could take the other half have a `pre_quant_scale` [K],
by which inputs are multiplied.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from gqc.checkpoints import microscaled
from gqc.checkpoints.awq import SCALES
from gqc.checkpoints.bits import unpack
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import Layer, Reader, warn_of_inputs
from gqc.checkpoints.weights import Prescaled, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import NVFP4, Scheme


def nvfp4(layer: Layer, group: int | None) -> BlockScaled:
    """weight u8 [N, K/2], weight_scale e4m3 [N, K/16], weight_scale_2 = amax / 2688."""
    return microscaled.nvfp4(layer, "weight", "weight_scale", layer.number("weight_scale_2"))


def int4(layer: Layer, group: int | None) -> BlockScaled:
    """weight u8 [N/2, K], two rows in a byte, the even one low; weight_scale [N, K/g]."""
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


def fp8(layer: Layer, group: int | None) -> BlockScaled:
    """weight e4m3 [N, K], weight_scale a scalar."""
    codes = layer.read("weight", ["F8_E4M3"], layer.spec("weight", 2).shape).view(torch.uint8)
    scale = layer.number("weight_scale").reshape(1, 1)
    return block_scaled("f8E4M3FN", (None, None), codes, scale)


ALGORITHMS: dict[str, Callable[[Layer, int | None], BlockScaled]] = {
    "NVFP4": nvfp4,
    "NVFP4_AWQ": nvfp4,
    "W4A16_NVFP4": nvfp4,
    "W4A16_AWQ": int4,
    "INT4_AWQ": int4,
    "FP8": fp8,
}
"""What reads a weight, by `quant_algo` of the config."""

QUANTIZED_INPUTS = ("NVFP4", "NVFP4_AWQ")
"""Algorithms whose inputs are NVFP4 too."""

MIXED = "MIXED_PRECISION"


class Modelopt(Reader):
    PARTS = frozenset({"weight_scale", "weight_scale_2", "input_scale", "pre_quant_scale"})
    HIDDEN = frozenset({"k_scale", "v_scale", "q_scale"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        self.algorithm = algorithm(quantization, (MIXED, *ALGORITHMS))
        layers = option(quantization, "quantized_layers", dict, {})
        self.layers = {name: value for name, value in layers.items() if isinstance(value, dict)}

    def config_of(self, layer: Layer) -> dict[str, Any]:
        """What the config says of a layer."""
        if self.algorithm != MIXED:
            return self.quantization
        if layer.name not in self.layers:
            raise layer.error("weight", "is quantized, but the config does not name its layer")
        return self.layers[layer.name]

    def weight(self, layer: Layer) -> BlockScaled | Prescaled:
        config = self.config_of(layer)
        group = option(config, "group_size", int, 0) or None
        weight = ALGORITHMS[algorithm(config, tuple(ALGORITHMS))](layer, group)
        if not layer.has("pre_quant_scale"):
            return weight
        factor = layer.read("pre_quant_scale", SCALES, (weight.codes.shape[1],))
        return Prescaled(weight, factor)

    def activation(self, name: str) -> Scheme | None:
        layer = self.quantized(name)
        algorithm = self.config_of(layer).get("quant_algo") if layer else None
        if layer is None or algorithm not in QUANTIZED_INPUTS:
            if algorithm == "FP8":
                warn_of_inputs(algorithm)
            return None
        return replace(NVFP4, static=layer.has("input_scale"))

    def input_scale(self, name: str) -> torch.Tensor | None:
        layer = self.quantized(name)
        return layer.number("input_scale") if layer and layer.has("input_scale") else None


def algorithm(config: dict[str, Any], known: tuple[str, ...]) -> str:
    name = option(config, "quant_algo", str).upper()
    if name not in known:
        raise GqcError(f"quantization config: quant_algo is {name!r}, not {', '.join(known)}")
    return name
