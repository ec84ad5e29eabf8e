"""gpt-oss: experts in MXFP4, three-dimensional, the other weights dense."""

from __future__ import annotations

import torch

from gqc.checkpoints.bits import unpack
from gqc.checkpoints.microscaled import MX_BLOCK, e8m0
from gqc.checkpoints.reader import Layer, Reader
from gqc.checkpoints.weights import Transposed, block_scaled
from gqc.errors import GqcError

BLOCKS, SCALES = "_blocks", "_scales"


class GptOss(Reader):
    """`<name>_blocks` u8 [E, N, K/32, 16], `<name>_scales` u8 [E, N, K/32].

    The dense model has a parameter `<name>` [E, K, N], with rows of gate and up taking turns in N.
    """

    def names(self) -> list[str]:
        names = (name.removesuffix(BLOCKS).removesuffix(SCALES) for name in super().names())
        return list(dict.fromkeys(names))

    def read(self, name: str) -> torch.Tensor | Transposed:  # pyright: ignore[reportIncompatibleMethodOverride]
        if not {name + BLOCKS, name + SCALES} & self.tensors.specs.keys():
            if name.endswith((BLOCKS, SCALES)):
                raise GqcError(f"no parameter is called {name!r}: names() has those that are")
            return super().read(name)  # pyright: ignore[reportReturnType]
        module, _, leaf = name.rpartition(".")
        layer = Layer(self.tensors, module)
        experts, n, blocks, width = layer.spec(leaf + BLOCKS, 4).shape
        if width * 2 != MX_BLOCK:
            raise layer.error(leaf + BLOCKS, f"has blocks of {width} bytes, expected 16")
        stored = layer.read(leaf + BLOCKS, ["U8"], (experts, n, blocks, width)).flatten(-2)
        codes = unpack(stored, 4, blocks * MX_BLOCK)
        scale = e8m0(layer, leaf + SCALES, experts, n, blocks)
        return Transposed(block_scaled("f4E2M1FN", (1, 1, MX_BLOCK), codes, scale))
