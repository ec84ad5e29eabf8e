"""Other libraries' quantizers: a weight [N, K] in, what they make of it in float32 out.

Scales and zero points are as the libraries hold them for a weight in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle import forward as compressed
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from perplexity import rounded
from torch import Tensor
from torchao.prototype.awq.core import AWQObserver
from torchao.prototype.smoothquant.core import SmoothQuantObserver
from torchao.quantization import Int8Tensor, IntxWeightOnlyConfig, MappingType, PerGroup, PerRow
from torchao.quantization.quant_primitives import (
    _choose_qparams_and_quantize_affine_hqq as torchao_choose_hqq,
)
from torchao.quantization.quantize_.workflows.intx.intx_choose_qparams_algorithm import (
    IntxChooseQParamsAlgorithm,
)
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
)
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    _apply_int8_act_asym_per_token_quant_dequant as torchao_asymmetric_tokens,
)

from gqc.quantizers import microscaling, quantize
from gqc.schemes import Scheme, preset

HqqQuantizer: Any = None
"""The authors' quantizer, where `hqq` is installed (the `bench` extra)."""
with suppress(ImportError):
    from hqq.core.quantize import Quantizer as HqqQuantizer  # pyright: ignore[reportMissingImports]

Rounding = Callable[[Tensor, int], Tensor]
"""Of a tensor and the group along its last dimension, in float32."""


@dataclass(frozen=True)
class Peer:
    """A library's result: its weights, and inputs where it quantizes these too.

    factors: of channels [K], from the weight, inputs of the layer [rows, K] and the group. Weights
    are multiplied by them before they are quantized, and inputs divided.
    """

    weight: Rounding
    activation: Rounding | None = None
    factors: Callable[[Tensor, Tensor, int], Tensor] | None = None


def spread(part: Tensor, group: int) -> Tensor:
    return part.float().repeat_interleave(group, 1)


def torchao_rtn(bits: int, mapping: str) -> Peer:
    """`IntxWeightOnlyConfig`, as it makes its tensor."""
    return torchao_intx(bits, mapping, IntxChooseQParamsAlgorithm.AFFINE)


def torchao_hqq_scale_only(bits: int) -> Peer:
    return torchao_intx(bits, "SYMMETRIC", IntxChooseQParamsAlgorithm.HQQ_SCALE_ONLY)


def torchao_intx(bits: int, mapping: str, algorithm: IntxChooseQParamsAlgorithm) -> Peer:
    def quantize(weight: Tensor, group: int) -> Tensor:
        found = IntxUnpackedToInt8Tensor.from_hp(
            weight,
            (1, group),  # pyright: ignore[reportArgumentType]
            getattr(torch, f"int{bits}"),
            mapping_type=MappingType[mapping],
            intx_choose_qparams_algorithm=algorithm,
        )
        codes, zero = found.qdata.float(), spread(found.zero_point, group)
        return (codes - zero) * spread(found.scale, group)

    return Peer(quantize)


def torchao_hqq(bits: int) -> Peer:
    def quantize(weight: Tensor, group: int) -> Tensor:
        codes, scale, zero, _ = torchao_choose_hqq(
            weight, bits, group, device="cpu", raw_output=True, compute_dtype=torch.float32
        )
        return (codes.float() - spread(zero, group)) * spread(scale, group)

    return Peer(quantize)


def torchao_awq(bits: int) -> Peer:
    """Its prototype's observer finds the factors; weights are rounded under them by `torchao_rtn`.

    Its GPTQ prototype runs on CUDA alone.
    """

    def factors(weight: Tensor, inputs: Tensor, group: int) -> Tensor:
        element = getattr(torch, f"int{bits}")
        config = IntxWeightOnlyConfig(element, PerGroup(group), MappingType.ASYMMETRIC)
        observer = AWQObserver(weight, None, config)
        observer(inputs, inputs)
        return observer.calculate_qparams()

    return replace(torchao_rtn(bits, "ASYMMETRIC"), factors=factors)


def torchao_int8(tensor: Tensor, group: int) -> Tensor:
    """Weights and inputs of `Int8DynamicActivationInt8WeightConfig`: one scale a row."""
    flat = tensor.reshape(-1, tensor.shape[-1])
    return Int8Tensor.from_hp(flat, PerRow()).dequantize().view_as(tensor)


def torchao_tokens(x: Tensor, group: int) -> Tensor:
    """Inputs of `Int8DynamicActivationIntxWeightConfig`: one scale and zero point a token."""
    return torchao_asymmetric_tokens(x.reshape(-1, x.shape[-1])).view_as(x)


def torchao_a8(bits: int) -> Peer:
    """8-bit inputs by tokens; weights of 8 bits by rows, of fewer in groups."""
    if bits == 8:
        return Peer(torchao_int8, torchao_int8)
    return replace(torchao_rtn(bits, "SYMMETRIC"), activation=torchao_tokens)


def smoothed(peer: Peer) -> Peer:
    """Under the factors of torchao's `SmoothQuantConfig`, with the α that it has unless told."""

    def factors(weight: Tensor, inputs: Tensor, group: int) -> Tensor:
        observer = SmoothQuantObserver(weight)
        observer(inputs)
        return observer.calculate_qparams()[0]

    return replace(peer, factors=factors)


def gqc_a8(bits: int) -> Peer:
    """gqc's own rounding in groups of weights and inputs, to put others' factors before."""

    def scheme(group: int) -> Scheme:
        return preset(f"w{bits}a8_g{group}")

    def inputs(x: Tensor, group: int) -> Tensor:
        activation = scheme(group).activation
        assert activation is not None
        type_ = activation.type(x.ndim)
        return microscaling(x, type_, activation.scale_rule).dequantize()

    return Peer(lambda w, group: quantize(w, scheme(group)).dequantize(), inputs)


def hqq(bits: int, optimize: bool = True) -> Peer | None:
    """The authors' own; None where `hqq` is not installed."""
    if HqqQuantizer is None:
        return None

    def quantize(weight: Tensor, group: int) -> Tensor:
        codes, meta = HqqQuantizer.quantize(
            weight, bits, group_size=group, optimize=optimize, axis=1, bitpack=False, device="cpu"
        )
        return ((codes - meta["zero"]) * meta["scale"]).reshape(weight.shape)

    return Peer(quantize)


def compressed_tensors(**arguments: Any) -> Peer:
    """compressed-tensors from the least and greatest element of each group, as it observes them."""

    def quantize(tensor: Tensor, group: int) -> Tensor:
        strategy = (
            "tensor_group" if arguments.get("scale_dtype") == torch.float8_e4m3fn else "group"
        )
        args = QuantizationArgs(**arguments, group_size=group, strategy=strategy)  # pyright: ignore
        flat = tensor.reshape(-1, tensor.shape[-1])
        low, high = flat.unflatten(1, (-1, group)).aminmax(dim=-1)
        whole = generate_gparam(low.min(), high.max()) if strategy == "tensor_group" else None
        scale, zero = calculate_qparams(low, high, args, whole)
        parts = {"scale": scale, "zero_point": None if args.symmetric else zero, "args": args}
        found = compressed.fake_quantize(flat, **parts, global_scale=whole)
        return found.float().view_as(tensor)

    return Peer(quantize)


def compressed_integers(bits: int, symmetric: bool) -> Peer:
    return compressed_tensors(num_bits=bits, type="int", symmetric=symmetric)


COMPRESSED_NVFP4 = compressed_tensors(num_bits=4, type="float", scale_dtype=torch.float8_e4m3fn)
COMPRESSED_MXFP4 = compressed_tensors(num_bits=4, type="float", scale_dtype=torch.uint8)


def torchao_floats(name: str) -> Peer:
    """torchao's `MXTensor` or `NVFP4Tensor` under a preset's choices."""
    scheme = preset(name)
    return Peer(lambda tensor, _: rounded(tensor, scheme))


def with_activations(peer: Peer) -> Peer:
    """Inputs are quantized as weights are."""
    return Peer(peer.weight, peer.weight)
