"""llama.cpp: ggml's matmul, its copies in one graph, from the libraries of llama-cpp-python."""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, quants

from cpu_peers import Run, copies_of

POINTER, SIZE, INT = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int

SIGNATURES = {
    "ggml_backend_alloc_ctx_tensors": (POINTER, POINTER, POINTER),
    "ggml_backend_alloc_ctx_tensors_from_buft": (POINTER, POINTER, POINTER),
    "ggml_backend_buffer_free": (None, POINTER),
    "ggml_backend_cpu_init": (POINTER,),
    "ggml_backend_cpu_reg": (POINTER,),
    "ggml_backend_cpu_set_n_threads": (None, POINTER, INT),
    "ggml_backend_dev_buffer_type": (POINTER, POINTER),
    "ggml_backend_dev_supports_op": (ctypes.c_bool, POINTER, POINTER),
    "ggml_backend_graph_compute": (INT, POINTER, POINTER),
    "ggml_backend_reg_dev_get": (POINTER, POINTER, SIZE),
    "ggml_backend_reg_get_proc_address": (POINTER, POINTER, ctypes.c_char_p),
    "ggml_backend_tensor_get": (None, POINTER, POINTER, SIZE, SIZE),
    "ggml_backend_tensor_set": (None, POINTER, POINTER, SIZE, SIZE),
    "ggml_build_forward_expand": (None, POINTER, POINTER),
    "ggml_free": (None, POINTER),
    "ggml_mul_mat": (POINTER, POINTER, POINTER, POINTER),
    "ggml_new_graph_custom": (POINTER, POINTER, SIZE, ctypes.c_bool),
    "ggml_new_tensor_2d": (POINTER, POINTER, INT, ctypes.c_int64, ctypes.c_int64),
    "ggml_quantize_chunk": (SIZE, INT, POINTER, POINTER, *[ctypes.c_int64] * 3, POINTER),
}
"""What functions return and take."""


class Parameters(ctypes.Structure):
    """ggml_init_params"""

    _fields_ = (("mem_size", SIZE), ("mem_buffer", POINTER), ("no_alloc", ctypes.c_bool))


class Ggml:
    """ggml's functions, from its three libraries, without their prefix."""

    def __init__(self) -> None:
        spec = find_spec("llama_cpp")
        if spec is None or spec.origin is None:
            raise ModuleNotFoundError("No module named 'llama_cpp'")
        folder = Path(spec.origin).parent / "lib"
        names = ("base", "cpu")
        libraries = [
            ctypes.CDLL(str(folder / f"libggml-{name}.so"), ctypes.RTLD_GLOBAL) for name in names
        ]
        for name, (result, *arguments) in SIGNATURES.items():
            function = next(getattr(lib, name) for lib in libraries if hasattr(lib, name))
            function.restype, function.argtypes = result, arguments
            setattr(self, name.removeprefix("ggml_"), function)
        self.libraries = libraries
        self.init = libraries[0].ggml_init
        self.init.restype, self.init.argtypes = POINTER, [Parameters]

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"ggml_{name} is not among the functions used here")

    def context(self, tensors: int) -> int:
        """Room for the descriptions of tensors and of a graph of them."""
        return self.init(Parameters((tensors + 8) * 1024, None, True))

    def buffer_types(self, repacked: bool) -> list[int]:
        """Kinds of memory for weights, as llama.cpp tries them: those that repack come first."""
        reg = self.backend_cpu_reg()
        found = [self.backend_dev_buffer_type(self.backend_reg_dev_get(reg, 0))]
        if not repacked:
            return found
        address = self.backend_reg_get_proc_address(reg, b"ggml_backend_dev_get_extra_bufts")
        extra = ctypes.CFUNCTYPE(ctypes.POINTER(POINTER), POINTER)(address)
        listed, i = extra(self.backend_reg_dev_get(reg, 0)), 0
        while listed[i]:
            found.insert(i, listed[i])
            i += 1
        return found


@cache
def ggml() -> Ggml:
    return Ggml()


class MulMat:
    def __init__(self, weight: np.ndarray, group: int, threads: int, type_: str, repacked: bool):
        self.lib, self.type = ggml(), GGMLQuantizationType[type_]
        self.n, self.k = weight.shape
        self.codes = self.quantized(weight)
        self.nbytes = self.codes.nbytes
        self.copies = copies_of(self.nbytes)
        self.backend = self.lib.backend_cpu_init()
        self.lib.backend_cpu_set_n_threads(self.backend, threads)
        bufts = self.lib.buffer_types(repacked)
        self.weights = next(filter(None, map(self.placed, bufts)))
        for w in self.weights:
            self.lib.backend_tensor_set(w, self.codes.ctypes.data, 0, self.nbytes)

    def quantized(self, weight: np.ndarray) -> np.ndarray:
        block, size = GGML_QUANT_SIZES[self.type]
        codes = np.empty((self.n, self.k // block * size), np.uint8)
        self.lib.quantize_chunk(
            self.type, weight.ctypes.data, codes.ctypes.data, 0, self.n, self.k, None
        )
        return codes

    def placed(self, buffer_type: int) -> list[int] | None:
        """Tensors for the copies in memory of a kind; None if it has no matmul of this type."""
        context = self.lib.context(self.copies)
        tensors = [self.tensor(context, self.type, self.n) for _ in range(self.copies)]
        buffer = self.lib.backend_alloc_ctx_tensors_from_buft(context, buffer_type)
        scratch = self.lib.context(2)
        op = self.lib.mul_mat(scratch, tensors[0], self.tensor(scratch, 0, 1))
        device = self.lib.backend_reg_dev_get(self.lib.backend_cpu_reg(), 0)
        supported = self.lib.backend_dev_supports_op(device, op)
        self.lib.free(scratch)
        if supported:
            return tensors
        self.lib.backend_buffer_free(buffer)
        self.lib.free(context)
        return None

    def tensor(self, context: int, type_: int, rows: int) -> int:
        return self.lib.new_tensor_2d(context, type_, self.k, rows)

    def weight(self) -> np.ndarray:
        return quants.dequantize(self.codes, self.type).astype(np.float64)

    def bind(self, x: np.ndarray) -> Run:
        return Bound(self, x)


class Bound:
    """The layer on one x; what it takes is given back with it."""

    def __init__(self, layer: MulMat, x: np.ndarray):
        lib = self.lib = layer.lib
        self.backend, self.shape = layer.backend, (len(x), layer.n)
        self.context = lib.context(8 * layer.copies)
        inputs = layer.tensor(self.context, 0, len(x))
        self.outputs = [lib.mul_mat(self.context, w, inputs) for w in layer.weights]
        self.graph = lib.new_graph_custom(self.context, 2 * layer.copies, False)
        for y in self.outputs:
            lib.build_forward_expand(self.graph, y)
        self.buffer = lib.backend_alloc_ctx_tensors(self.context, self.backend)
        lib.backend_tensor_set(inputs, x.ctypes.data, 0, x.nbytes)

    def __call__(self) -> Product:
        if status := self.lib.backend_graph_compute(self.backend, self.graph):
            raise RuntimeError(f"ggml's graph failed with status {status}")
        return Product(self)

    def __del__(self) -> None:
        self.lib.backend_buffer_free(self.buffer)
        self.lib.free(self.context)


class Product:
    """An output that is copied when it is looked at."""

    def __init__(self, bound: Bound):
        self.bound = bound

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        y = np.empty(self.bound.shape, np.float32)
        self.bound.lib.backend_tensor_get(self.bound.outputs[0], y.ctypes.data, 0, y.nbytes)
        return y.astype(dtype or np.float32)
