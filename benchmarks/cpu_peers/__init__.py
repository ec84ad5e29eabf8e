"""Other libraries' linear layers on a CPU, one small class each, and the table of them.

A class quantizes a weight as its library does and holds as many copies of it as no cache holds
together. Modules are imported when their peer is asked for, by a Python that has the library: they
import nothing of gqc.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any, Protocol

import numpy as np

ROTATED_BYTES = 256 << 20

Run = Callable[[], Any]
"""Multiplies by every copy of the weight, and gives the product with one of them, [M, N]."""


class Layer(Protocol):
    """y [M, N] = x [M, K] @ w [N, K].T"""

    copies: int
    nbytes: int
    """Of one packed weight, with its scales."""

    def weight(self) -> np.ndarray:
        """What the packed weight stands for, [N, K] in float64."""
        ...

    def bind(self, x: np.ndarray) -> Run:
        """The layer on x, [M, K] in float32 of values that bfloat16 has."""
        ...


@dataclass(frozen=True)
class Peer:
    """One row of the table. `make(weight [N, K] in float32, group, threads, **options)`."""

    where: str
    """`module:class`."""
    numerics: str
    """Activations that are multiplied: `16-bit` (bf16), `32-bit` (f16 too is widened), `int8`."""
    bits: int
    """Of a code."""
    packages: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    grouped: bool = True
    """Whether the group of the scales can be chosen."""

    def make(self, weight: np.ndarray, group: int, threads: int) -> Layer:
        module, name = self.where.split(":")
        make = getattr(import_module(module), name)
        return make(weight, group, threads, **self.options)


def dense(dtype: str) -> Peer:
    bits = 16 if dtype == "bfloat16" else 32
    where, options = "cpu_peers.torch_peers:Dense", {"dtype": dtype}
    return Peer(where, f"{bits}-bit", bits, ("torch",), options, grouped=False)


def onnx(accuracy: int) -> Peer:
    numerics = "int8" if accuracy == 4 else "32-bit"
    packages = ("onnxruntime", "onnx")
    return Peer("cpu_peers.onnx_runtime:MatMulNBits", numerics, 4, packages, {"accuracy": accuracy})


def openvino(dynamic: bool) -> Peer:
    numerics = "int8" if dynamic else "16-bit"
    return Peer("cpu_peers.open_vino:MatMul", numerics, 4, ("openvino",), {"dynamic": dynamic})


def llama(type_: str, bits: int, repacked: bool = True) -> Peer:
    options = {"type_": type_, "repacked": repacked}
    packages = ("llama-cpp-python",)
    return Peer("cpu_peers.ggml:MulMat", "int8", bits, packages, options, grouped=False)


PEERS = {
    "torch f32": dense("float32"),
    "torch bf16": dense("bfloat16"),
    "aten int4": Peer("cpu_peers.torch_peers:AtenInt4", "16-bit", 4, ("torch",)),
    "bitsandbytes nf4": Peer(
        "cpu_peers.bits_and_bytes:Nf4", "16-bit", 4, ("bitsandbytes", "torch")
    ),
    "onnxruntime 0": onnx(0),
    "onnxruntime 4": onnx(4),
    "openvino": openvino(True),
    "openvino static": openvino(False),
    "llama.cpp Q4_0": llama("Q4_0", 4),
    "llama.cpp Q4_K": llama("Q4_K", 4),
    "llama.cpp Q8_0": llama("Q8_0", 8),
    "llama.cpp MXFP4": llama("MXFP4", 4),
    "llama.cpp Q4_0 plain": llama("Q4_0", 4, repacked=False),
    "llama.cpp Q4_K plain": llama("Q4_K", 4, repacked=False),
    "llama.cpp MXFP4 plain": llama("MXFP4", 4, repacked=False),
    "executorch 8da4w": Peer(
        "cpu_peers.executorch_xnnpack:DynamicInt4", "int8", 4, ("executorch", "torchao", "torch")
    ),
}
"""Peers by name. `static` is OpenVINO without dynamic quantization, `plain` llama.cpp with weights
in the order of the file; both are otherwise as the libraries set themselves up."""


def copies_of(nbytes: int) -> int:
    return max(2, -(-ROTATED_BYTES // nbytes))
