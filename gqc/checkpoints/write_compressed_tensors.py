"""compressed-tensors, written: what the library of that name and vLLM load.

The global scale of NVFP4 is a divisor there, and its reciprocal in float32 is the tensor scale.
Reciprocals of float32 numbers are not all of them: where m of a tensor scale m·2^e is above √2, it
may lie between two. The divisor written is that whose reciprocal is nearest, which is the tensor
scale to the bit or its neighbour, 2^-24 to 2^-23 of it away, less than the bfloat16 that the
library computes in can tell. Weights that gqc quantizes for this format have tensor scales that are
reciprocals (`reciprocal_tensor_scale`).

vLLM multiplies by q, k and v at once, and by gate and up, and takes the greatest of their divisors
for all: if these differ, its weights are wrong by their ratio. Weights that gqc quantizes for this
format share one (`FUSED`); of others that do not, the writer warns.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from xdsl.dialects.builtin import DYNAMIC_INDEX

from gqc.checkpoints.bits import pack, pack_words
from gqc.checkpoints.compressed_tensors import ACTIVATIONS
from gqc.checkpoints.weights import Weight
from gqc.checkpoints.writer import Form, Tensors, Writer
from gqc.formats.block_scaled import BlockScaled
from gqc.formats.elements import INTEGER_BITS
from gqc.schemes import Scheme, wildcard

if TYPE_CHECKING:
    from gqc.dialects.gq import BlockScaledType

Block = tuple[int | None, int | None]

METHOD = "compressed-tensors"
FLOATS = ("f16", "bf16", "f32")
DTYPES = {"float16": "f16", "bfloat16": "bf16"}
"""Formats of models, by the names in configs, which do not hold every scale."""

FUSED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("w1", "w3"),
)
"""Layers of one module that vLLM merges into one matmul."""


def divisor_of(scale: torch.Tensor) -> torch.Tensor:
    """The float32 [1] whose reciprocal, in float32, is nearest to a tensor scale."""
    exact = scale.double().reshape(1)
    near = exact.reciprocal().float()
    around = torch.cat([near, near.nextafter(torch.zeros(1)), near.nextafter(near * 2)])
    return around[(around.reciprocal().double() - exact).abs().argmin()].reshape(1)


def reciprocal_tensor_scale(scale: torch.Tensor) -> torch.Tensor:
    """The nearest tensor scale to one, both float32 scalars, that a divisor stands for."""
    return divisor_of(scale).reciprocal().reshape(())


def packed_integers(weight: BlockScaled) -> Tensors:
    """Codes with 2^(b−1) added, which unsigned ones have already, and zero points likewise."""
    bits, codes = weight.type.format.bits, weight.codes
    if weight.zero is None:
        codes = codes.view(torch.uint8) + (1 << bits - 1)
    parts = {
        "weight_packed": pack_words(codes, bits),
        "weight_scale": weight.scale,
        "weight_shape": torch.tensor(codes.shape),
    }
    if weight.zero is not None:
        parts["weight_zero_point"] = pack_words(weight.zero.T.contiguous(), bits).T.contiguous()
    return parts


def e4m3(weight: BlockScaled) -> Tensors:
    whole = block_of(weight.type) == (None, None)
    scale = weight.scale.reshape(1) if whole else weight.scale
    return {"weight": weight.codes.view(torch.float8_e4m3fn), "weight_scale": scale}


def nvfp4(weight: BlockScaled) -> Tensors:
    whole = torch.ones(()) if weight.tensor_scale is None else weight.tensor_scale
    return {
        "weight_packed": pack(weight.codes, 4),
        "weight_scale": weight.scale,
        "weight_global_scale": divisor_of(whole),
    }


def mx_packed(weight: BlockScaled) -> Tensors:
    codes = pack(weight.codes, weight.type.format.bits)
    return {"weight_packed": codes, "weight_scale": weight.scale.view(torch.uint8)}


def mx_e4m3(weight: BlockScaled) -> Tensors:
    return e4m3(weight) | {"weight_scale": weight.scale.view(torch.uint8)}


@dataclass(frozen=True)
class Row:
    """One row: a format, the types that it holds by blocks, and what it stores of them."""

    format: str
    parts: Callable[[BlockScaled], Tensors]
    elements: tuple[str, ...]
    scales: tuple[str, ...]
    strategies: tuple[str, ...]
    block: Block | None = None
    mode: str = "none"
    scale_dtype: str | None = None

    def holds(self, type_: BlockScaledType) -> bool:
        block = block_of(type_)
        return (
            str(type_.element) in self.elements
            and str(type_.scale) in self.scales
            and type_.zero_mode.data == self.mode
            and block is not None
            and self.block in (None, block)
            and (strategy_of(block) in self.strategies or self.block is not None)
        )

    def arguments(self, type_: BlockScaledType) -> dict[str, Any]:
        """The library's QuantizationArgs of a weight."""
        block, element = block_of(type_), type_.format
        assert block is not None
        strategy = self.strategies[0] if self.block is not None else strategy_of(block)
        return {
            "num_bits": element.bits,
            "type": "int" if element.is_integer else "float",
            "symmetric": not type_.has_zero,
            "strategy": strategy,
            "group_size": block[1] if strategy in ("group", "tensor_group") else None,
            **({"block_structure": list(block)} if strategy == "block" else {}),
            "dynamic": False,
            **({"scale_dtype": self.scale_dtype} if self.scale_dtype else {}),
        }


def block_of(type_: BlockScaledType) -> Block | None:
    """Extents of the block, None for a whole dimension; None unless it has two."""
    extents = [None if b.data == DYNAMIC_INDEX else b.data for b in type_.block]
    return (extents[0], extents[1]) if len(extents) == 2 else None


def strategy_of(block: Block) -> str:
    """The library's name for what shares a scale."""
    known = {(None, None): "tensor", (1, None): "channel"}
    return known.get(block) or ("group" if block[0] == 1 else "block")


BY_ROWS = ("group", "channel")
E8M0, MX = ("f8E8M0FNU",), {"block": (1, 32), "scale_dtype": "torch.uint8"}
SIGNED, UNSIGNED = (tuple(f"{sign}i{bits}" for bits in INTEGER_BITS) for sign in "su")

ROWS: tuple[Row, ...] = (
    Row("pack-quantized", packed_integers, SIGNED, FLOATS, BY_ROWS),
    Row("pack-quantized", packed_integers, UNSIGNED, FLOATS, BY_ROWS, mode="quantized"),
    Row("float-quantized", e4m3, ("f8E4M3FN",), FLOATS, ("tensor", "channel", "group", "block")),
    Row(
        "nvfp4-pack-quantized",
        nvfp4,
        ("f4E2M1FN",),
        ("f8E4M3FN",),
        ("tensor_group",),
        block=(1, 16),
        scale_dtype="torch.float8_e4m3fn",
    ),
    Row("mxfp4-pack-quantized", mx_packed, ("f4E2M1FN",), E8M0, ("group",), **MX),
    Row("mxfp6-pack-quantized", mx_packed, ("f6E2M3FN",), E8M0, ("group",), **MX),
    Row("mxfp8-quantized", mx_e4m3, ("f8E4M3FN",), E8M0, ("group",), **MX),
)
"""Formats of the library that hold what gqc has; the first that does is written."""


def row_of(type_: BlockScaledType) -> Row | None:
    return next((row for row in ROWS if row.holds(type_)), None)


def inputs_of(key: tuple[str, int, int], scheme: Scheme) -> dict[str, Any]:
    """The library's QuantizationArgs of an input."""
    kind, bits, group = key
    mx = not scheme.tensor_scale
    return {
        "num_bits": bits,
        "type": kind,
        "symmetric": True,
        "strategy": "group" if mx else "tensor_group",
        "group_size": group,
        "dynamic": True if mx else "local",
        "scale_dtype": "torch.uint8" if mx else "torch.float8_e4m3fn",
    }


INPUTS: dict[Scheme, dict[str, Any]] = {
    replace(scheme, static=scheme.tensor_scale): inputs_of(key, scheme)
    for key, scheme in ACTIVATIONS.items()
}
"""Schemes of inputs that the library has, tensor scales being static: it has no dynamic ones."""


class CompressedTensorsWriter(Writer):
    selective = True
    fused = FUSED
    tensor_scale = staticmethod(reciprocal_tensor_scale)

    def __init__(self, forms: dict[str, Form]):
        super().__init__(forms)
        self.divisors: dict[str, float] = {}

    def problem(self, name: str) -> str | None:
        form = self.forms[name]
        if name.rpartition(".")[2] != "weight":
            return "is not called `weight`, as weights of its linear layers are"
        if form.wrappers:
            return f"is {', '.join(form.names)}: quantize it without transforms of channels"
        if row_of(form.type) is None:
            return f"is {form.type}; {remedy(form.type)}"
        if form.activation is not None and form.activation not in INPUTS:
            return f"has inputs of {form.activation}: {remedy_of_inputs(form.activation)}"
        return None

    def warn(self, config: dict[str, Any]) -> None:
        model = DTYPES.get(str(config.get("dtype") or config.get("torch_dtype")))
        scales = {str(form.type.scale) for form in self.forms.values()} & set(FLOATS) - {model}
        if model is not None and scales:
            warnings.warn(
                f"scales are {', '.join(sorted(scales))}, and the model is {model}: vLLM and "
                f"transformers cast them to it, which rounds them; give a scheme with scale={model}"
                ' ("si4 g128 scale=bf16 quantizer=rtn scale_rule=no_clip")',
                stacklevel=3,
            )

    def parts(self, name: str, weight: Weight, scale: torch.Tensor | None) -> Tensors:
        assert isinstance(weight, BlockScaled)
        row = row_of(weight.type)
        assert row is not None
        parts = row.parts(weight)
        if "weight_global_scale" in parts:
            self.divisors[name] = parts["weight_global_scale"].item()
        if scale is not None:
            parts["input_global_scale"] = divisor_of(scale)
        module = name.removesuffix("weight")
        return {module + part: tensor for part, tensor in parts.items()}

    def quantization(self, dense: Sequence[str]) -> dict[str, Any]:
        self.warn_of_divisors()
        groups: dict[str, list[str]] = {}
        described: dict[str, dict[str, Any]] = {}
        for name, form in self.forms.items():
            group = described_group(form)
            groups.setdefault(str(group), []).append(name)
            described[str(group)] = group
        matrices = [*self.forms, *dense]
        formats = {group["format"] for group in described.values()}
        return {
            "quant_method": METHOD,
            "format": formats.pop() if len(formats) == 1 else "mixed-precision",
            "quantization_status": "compressed",
            "config_groups": {
                f"group_{i}": {"targets": targets(names, matrices), **described[key]}
                for i, (key, names) in enumerate(groups.items())
            },
            "ignore": targets(dense, matrices),
        }

    def warn_of_divisors(self) -> None:
        """Warn of layers that vLLM merges, and whose divisors differ."""
        merged: dict[str, set[float]] = {}
        for name, divisor in self.divisors.items():
            merged.setdefault(fused_name(name, FUSED), set()).add(divisor)
        if differing := [name for name, divisors in merged.items() if len(divisors) > 1]:
            warnings.warn(
                f"tensor scales differ within {len(differing)} groups of layers ({differing[0]} "
                "first) that vLLM merges under one: there these lose accuracy; `gqc quantize "
                "--format compressed-tensors` gives them one",
                stacklevel=4,
            )


def described_group(form: Form) -> dict[str, Any]:
    """What the config says of weights of a form."""
    row = row_of(form.type)
    assert row is not None
    inputs = None if form.activation is None else INPUTS[form.activation]
    weights = row.arguments(form.type)
    return {"format": row.format, "weights": weights, "input_activations": inputs}


def fused_name(name: str, fused: Sequence[Sequence[str]]) -> str:
    """One name for weights of layers that are merged, their own for others."""
    before, _, leaf = name.removesuffix(".weight").rpartition(".")
    group = next((group for group in fused if leaf in group), (leaf,))
    return f"{before}.{{{','.join(group)}}}" if len(group) > 1 else name


def targets(names: Sequence[str], matrices: Sequence[str]) -> list[str]:
    """Names of the modules of some weights, patterns for those alike if all of these are."""
    every: dict[str, int] = {}
    for name in matrices:
        every[wildcard(name)] = every.get(wildcard(name), 0) + 1
    alike: dict[str, list[str]] = {}
    for name in names:
        alike.setdefault(wildcard(name), []).append(name.removesuffix(".weight"))
    result = []
    for pattern, modules in alike.items():
        whole = len(modules) == every[pattern] and len(modules) > 1
        result += [expression(pattern.removesuffix(".weight"))] if whole else modules
    return result


def expression(pattern: str) -> str:
    """The library's regular expression of modules that differ in numbers."""
    parts = (r"\d+" if part == "*" else re.escape(part) for part in pattern.split("."))
    return "re:" + r"\.".join(parts) + "$"


def remedy(type_: BlockScaledType) -> str:
    """What to quantize to instead of a type that no row holds."""
    if type_.has_zero:
        return "zero points must be codes: use zero_mode=quantized, or none (int4_g128_sym)"
    scales = {scale for row in ROWS if str(type_.element) in row.elements for scale in row.scales}
    if not scales:
        elements = dict.fromkeys(element for row in ROWS for element in row.elements)
        return f"the library has no such codes: use {', '.join(elements)}"
    return f"the library has no such scales or blocks of {type_.element}"


def remedy_of_inputs(scheme: Scheme) -> str:
    """What to quantize inputs to instead."""
    if scheme.tensor_scale:
        return "the format has a tensor scale that is calibrated: use nvfp4_static or w4a16_nvfp4"
    known = [s for s in INPUTS if s.element == scheme.element]
    rounded = f"the format's are rounded {known[0].scale_rule}" if known else "the format has none"
    return f"{rounded}: use such a scheme, or one for weights alone (w4a16_…, w8a16_…)"
