"""Fine-grained FP8, as DeepSeek-V3 and transformers write it: blocks of 128×128 of E4M3."""

from __future__ import annotations

from typing import Any

import torch

from gqc.checkpoints.compressed_tensors import finer
from gqc.checkpoints.files import Tensors, option
from gqc.checkpoints.reader import Layer, Reader, warn_of_inputs
from gqc.checkpoints.weights import block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.schemes import Scheme


class Fp8(Reader):
    """weight e4m3 [N, K], weight_scale_inv [ceil(N/A), ceil(K/B)], which is a factor."""

    PARTS = frozenset({"weight_scale_inv"})

    def __init__(self, tensors: Tensors, quantization: dict[str, Any], config: dict[str, Any]):
        super().__init__(tensors, quantization, config)
        block = option(quantization, "weight_block_size", list)
        if len(block) != 2 or any(type(extent) is not int or extent < 1 for extent in block):
            raise GqcError(f"quantization config: weight_block_size is {block!r}, expected [A, B]")
        self.block = (block[0], block[1])

    def weight(self, layer: Layer) -> BlockScaled:
        n, k = layer.spec("weight", 2).shape
        scale, block = finer(layer, "weight_scale_inv", ("F32", "BF16"), self.block, (n, k))
        codes = layer.read("weight", ["F8_E4M3"], (n, k)).view(torch.uint8)
        return block_scaled("f8E4M3FN", block, codes, scale)

    def activation(self, name: str) -> Scheme | None:
        if self.quantized(name):
            warn_of_inputs("FP8")
        return None
