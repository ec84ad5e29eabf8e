"""bitsandbytes: NF4 and FP4 in blocks of a flattened weight, and LLM.int8's rows of int8.

Of a weight `<layer>.weight` in 4 bits there are `weight.absmax`, the scale of each block;
`weight.quant_map`, the value of each code; and `weight.quant_state.bitsandbytes__<type>`, JSON with
its shape. Under double quantization absmax is a code of `weight.nested_quant_map`, and a scale is
`map[code] · nested_absmax + nested_offset`: they become float32 as they are read.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import torch

from gqc.checkpoints.files import FLOATS
from gqc.checkpoints.reader import Layer, Reader, warn_of_inputs
from gqc.checkpoints.weights import Weight, block_scaled
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import ELEMENTS

CODEBOOKS = {"nf4": "nf4", "fp4": "fp4_bnb"}
"""Elements by `quant_type`."""

STATE = "quant_state.bitsandbytes__"
PART = re.compile(rf"(absmax|quant_map|nested_absmax|nested_quant_map|{re.escape(STATE)}\w+)$")
"""What follows the name of a weight of 4 bits in the names of its parts."""

STORAGES = ("U8", "I8", *FLOATS)
"""What codes of 4 bits are stored as, two in a byte, whatever it is taken for."""

INT8_GREATEST = 127
"""Code of a row's greatest magnitude, `SCB`."""


class Bitsandbytes(Reader):
    PARTS = frozenset({"SCB", "weight_format"})
    KEYS = frozenset({"SCB"})

    def names(self) -> list[str]:
        return [name for name in super().names() if self.owner(name) is None]

    def owner(self, stored: str) -> str | None:
        """The weight that a stored tensor is a part of, beside the codes; None of other tensors."""
        match = PART.search(stored)
        name = stored[: match.start()].rstrip(".") if match else None
        return name if name in self.tensors.specs else None

    def state_of(self, name: str) -> tuple[str, Layer] | None:
        """Type of the codes, and the parts, of a weight of 4 bits; None of another."""
        for kind in CODEBOOKS:
            if f"{name}.{STATE}{kind}" in self.tensors.specs:
                return kind, Layer(self.tensors, name)
        return None

    def read(self, name: str) -> Weight:
        if (found := self.state_of(name)) is not None:
            return four_bits(name, *found)
        if self.owner(name) is not None:
            raise GqcError(f"no parameter is called {name!r}: names() has those that are")
        spec = self.tensors.specs.get(name)
        if spec is not None and spec.dtype == "U8" and name.endswith(".weight"):
            raise self.tensors.error(
                name, f"is {spec} without {STATE}nf4 or …fp4: save the model with its quant_state"
            )
        return super().read(name)

    def weight(self, layer: Layer) -> BlockScaled:
        """weight i8 [N, K], SCB f32 [N], the greatest magnitude of a row; weight_format 0."""
        n, k = layer.spec("weight", 2).shape
        if layer.has("weight_format"):
            form = int(layer.read("weight_format", ["U8"], (), (1,)))
            if form != 0:
                raise layer.error("weight_format", f"is {form}, made for one GPU: save it as 0")
        codes = layer.read("weight", ["I8"], (n, k))
        scale = layer.read("SCB", ["F32"], (n,)).reshape(n, 1) / INT8_GREATEST
        return block_scaled("si8", (1, None), codes, scale)

    def activation(self, name: str) -> None:
        if self.quantized(name):
            warn_of_inputs("int8")


def four_bits(name: str, kind: str, layer: Layer) -> BlockScaled:
    """Codes in the order of the flattened weight, the first of two in the upper half of a byte."""
    state = state_in(layer, kind)
    (n, k), size = state["shape"], state["blocksize"]
    codes = codes_of(name, layer, n * k).view(n, k)
    element = CODEBOOKS[kind]
    values = layer.read("quant_map", ["F32"], (1 << ELEMENTS[element].bits,))
    if values.tolist() != [*ELEMENTS[element].values]:
        raise layer.error("quant_map", f"has other values than those of {kind}")
    scale = scales_of(layer, state, -(-n * k // size))
    group = math.gcd(k, size)  # blocks of the flattened weight may cross rows
    scale = scale.repeat_interleave(size // group)[: n * k // group].view(n, k // group)
    return block_scaled(element, (1, group), codes, scale)


def state_in(layer: Layer, kind: str) -> dict[str, Any]:
    """The JSON of a weight's state, checked. Raises GqcError."""
    part = STATE + kind
    stored = layer.read(part, ["U8"], layer.spec(part, 1).shape)
    try:
        state = json.loads(bytes(stored.tolist()))
        shape, size = state["shape"], state["blocksize"]
        sizes = [*shape, size, state.get("nested_blocksize", 1)]
        whole = all(type(extent) is int and extent > 0 for extent in sizes)
        nested = state.setdefault("nested_offset", 0.0)
        if len(shape) != 2 or not whole or not isinstance(nested, int | float):
            raise ValueError(f"it is {state}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise layer.error(part, f"is no state of a weight [N, K] in blocks: {error}") from error
    return state


def codes_of(name: str, layer: Layer, count: int) -> torch.Tensor:
    """So many codes, uint8."""
    spec = layer.tensors.specs[name]
    if spec.dtype not in STORAGES or spec.bytes != -(-count // 2):
        raise layer.tensors.error(name, f"is {spec}, expected {-(-count // 2)} bytes of codes")
    packed = layer.tensors.read(name, bits=True).contiguous().view(torch.uint8).flatten()
    return torch.stack([packed >> 4, packed & 15], 1).flatten()[:count]


def scales_of(layer: Layer, state: dict[str, Any], blocks: int) -> torch.Tensor:
    """The scales of the blocks, float32."""
    if not layer.has("nested_absmax"):
        return layer.read("absmax", ["F32"], (blocks,))
    size, offset = state.get("nested_blocksize", 256), state["nested_offset"]
    codes = layer.read("absmax", ["U8"], (blocks,)).long()
    values = layer.read("nested_quant_map", ["F32"], (256,))
    whole = layer.read("nested_absmax", ["F32"], (-(-blocks // size),))
    return values[codes] * whole.repeat_interleave(size)[:blocks] + offset
