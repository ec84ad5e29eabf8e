"""gqc's own format, written: every weight that gqc has, whatever target it is for.

A quantized parameter `<name>`, codes [N, K] of b bits (or [E, N, K]) in G blocks a row, is stored
as the tensors

    <name>.codes         [N, ceil(K·b/8)] U8; E4M3 and E5M2 as themselves, [N, K]
    <name>.scale         [N/A, K/B] for blocks A×B, F16, BF16, F32, F8_E4M3, or U8 for E8M0
    <name>.zero          like the scales where it is a float; [N/A, ceil(G·b/8)] U8 where a code
    <name>.tensor_scale  [] F32, a factor
    <name>.order         [K] I32, of a `Permuted` weight ([N] where its dim is 0)
    <name>.factor        [K] F16, BF16 or F32, of a `Prescaled` one
    <name>.input_scale   [] F32, the tensor scale of the layer's input where it is static, a factor

of which those are there that its form has. Bits of a row are one stream, padded to a byte: code i
has bits i·b to i·b + b − 1, bit j of the stream being bit j mod 8 of byte j // 8; signed codes are
in two's complement. What codes, scales and zero points stand for is `BlockScaled.dequantize`.

`quantization_config` in config.json is

    {"quant_method": "gqc", "version": 1, "forms": [FORM, …], "layers": {<name>: index of its form}}

where FORM has `type` (what stands between the brackets of the IR's `!gq.block_scaled<…>`), `shape`
of the codes, `wrappers`, the outermost first (`["Permuted", dim]`, `["Prescaled", null]`,
`["Rotated", block]`, `["Transposed", null]`: see `gqc.checkpoints.weights`), `activation`, the text
of the scheme of the layer's input, or null, and `origin`, what quantized it, in words. Readers
refuse a version above theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from gqc.checkpoints.bits import pack
from gqc.checkpoints.microscaled import NATIVE
from gqc.checkpoints.weights import Weight
from gqc.checkpoints.writer import WRAPPERS, Form, Tensors, Writer, unwrapped
from gqc.formats.block_scaled import BlockScaled

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

METHOD, VERSION = "gqc", 1

PARTS = ("codes", "scale", "zero", "tensor_scale", "order", "factor", "input_scale")

NATIVE_DTYPES = {"F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2}


class GqcWriter(Writer):
    def problem(self, name: str) -> str | None:
        names = self.forms[name].names
        return "is wrapped twice alike" if len(set(names)) < len(names) else None

    def parts(self, name: str, weight: Weight, scale: torch.Tensor | None) -> Tensors:
        wrappers, inner = unwrapped(weight)
        assert isinstance(inner, BlockScaled)
        parts = block_scaled_parts(inner)
        for kind, wrapper in wrappers:
            if (field := WRAPPERS[kind].tensor) is not None:
                parts[field] = getattr(wrapper, field)
        if "order" in parts:
            parts["order"] = parts["order"].to(torch.int32)
        if scale is not None:
            parts["input_scale"] = scale.float().reshape(())
        return {f"{name}.{part}": as_bytes(tensor) for part, tensor in parts.items()}

    def quantization(self, dense: Sequence[str]) -> dict[str, Any]:
        described = {name: described_form(form) for name, form in self.forms.items()}
        forms: list[dict[str, Any]] = []
        places: dict[str, int] = {}
        for form in described.values():
            if (key := str(form)) not in places:
                places[key] = len(forms)
                forms.append(form)
        layers = {name: places[str(form)] for name, form in described.items()}
        return {"quant_method": METHOD, "version": VERSION, "forms": forms, "layers": layers}


def block_scaled_parts(weight: BlockScaled) -> Tensors:
    """The tensors of a block-scaled weight by part."""
    parts = {"codes": stored_codes(weight.codes, weight.type), "scale": weight.scale}
    if weight.zero is not None:
        integer = weight.type.mode.integer
        parts["zero"] = pack(weight.zero, weight.type.format.bits) if integer else weight.zero
    if weight.tensor_scale is not None:
        parts["tensor_scale"] = weight.tensor_scale.float().reshape(())
    return parts


def stored_codes(codes: torch.Tensor, type_: BlockScaledType) -> torch.Tensor:
    if (element := str(type_.element)) in NATIVE:
        return codes.view(NATIVE_DTYPES[NATIVE[element]])
    return pack(codes, type_.format.bits)


def as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    """E8M0 as bytes, other tensors as they are."""
    return tensor.view(torch.uint8) if tensor.dtype == torch.float8_e8m0fnu else tensor


def described_form(form: Form) -> dict[str, Any]:
    return {
        "type": form.type.text,
        "shape": list(form.shape),
        "wrappers": [list(wrapper) for wrapper in form.wrappers],
        "activation": None if form.activation is None else str(form.activation),
        "origin": form.origin,
    }
