"""Other libraries' quantizers: a weight [N, K] in, what they make of it in float32 out.

Scales and zero points are as the libraries hold them for a weight in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle import forward as compressed
from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam
from perplexity import rounded
from torch import Tensor
from torchao.prototype.awq.core import AWQObserver
from torchao.quantization import IntxWeightOnlyConfig, MappingType, PerGroup
from torchao.quantization.quant_primitives import (
    _choose_qparams_and_quantize_affine_hqq as torchao_choose_hqq,
)
from torchao.quantization.quantize_.workflows.intx.intx_choose_qparams_algorithm import (
    IntxChooseQParamsAlgorithm,
)
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
)

from gqc.schemes import preset

HqqQuantizer: Any = None
"""The authors' quantizer, where `hqq` is installed (the `bench` extra)."""
with suppress(ImportError):
    from hqq.core.quantize import Quantizer as HqqQuantizer  # pyright: ignore[reportMissingImports]

Rounding = Callable[[Tensor, int], Tensor]
"""Of a tensor and the group along its last dimension, in float32."""


@dataclass(frozen=True)
class Peer:
    """A library's result: its weights, and inputs where it quantizes these too.

    weight_for: in place of `weight` where inputs of the layer [rows, K] have a say.
    """

    weight: Rounding
    activation: Rounding | None = None
    weight_for: Callable[[Tensor, Tensor, int], Tensor] | None = None


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
    rtn = torchao_rtn(bits, "ASYMMETRIC")

    def quantize(weight: Tensor, inputs: Tensor, group: int) -> Tensor:
        element = getattr(torch, f"int{bits}")
        config = IntxWeightOnlyConfig(element, PerGroup(group), MappingType.ASYMMETRIC)
        observer = AWQObserver(weight, None, config)
        observer(inputs, inputs)
        factors = observer.calculate_qparams()
        return rtn.weight(weight * factors, group) / factors

    return Peer(rtn.weight, weight_for=quantize)


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
