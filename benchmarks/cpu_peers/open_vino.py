"""OpenVINO: u4 weights, its copies in one model."""

from __future__ import annotations

import numpy as np
import openvino  # pyright: ignore[reportMissingImports]
from openvino import opset13 as ops  # pyright: ignore[reportMissingImports]

from cpu_peers import Run, copies_of
from cpu_peers.rounding import Codes, nibbles, to_nearest


class MatMul:
    def __init__(self, weight: np.ndarray, group: int, threads: int, dynamic: bool):
        self.rounded = to_nearest(weight, group)
        codes, scale, zero = self.rounded.codes, self.rounded.scale, self.rounded.zero
        self.nbytes = codes.size // 2 + scale.size * 2 + zero.size // 2
        self.copies = copies_of(self.nbytes)
        x = ops.parameter([-1, weight.shape[1]], np.float32)
        copies = map(self.rounded.shifted, range(self.copies))
        results = [ops.matmul(x, decompressed(each), False, True) for each in copies]
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            **({} if dynamic else {"DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}),
        }
        model = openvino.Model(results, [x])
        self.compiled = openvino.Core().compile_model(model, "CPU", settings)

    def weight(self) -> np.ndarray:
        return self.rounded.dequantized()

    def bind(self, x: np.ndarray) -> Run:
        request = self.compiled.create_infer_request()
        request.set_input_tensor(openvino.Tensor(x, shared_memory=True))

        def run() -> np.ndarray:
            request.infer()
            return request.get_output_tensor(0).data

        return run


def decompressed(rounded: Codes):
    """A weight in the operations by which OpenVINO knows that it is compressed."""
    n, k = rounded.codes.shape
    groups = rounded.scale.shape[1]
    codes = u4(rounded.codes, [n, groups, k // groups])
    zero = u4(rounded.zero, [n, groups, 1])
    scale = ops.constant(rounded.scale.reshape(n, groups, 1).astype(np.float16))
    half = np.float16
    values = ops.multiply(ops.subtract(ops.convert(codes, half), ops.convert(zero, half)), scale)
    return ops.convert(ops.reshape(values, [n, k], False), np.float32)


def u4(codes: np.ndarray, shape: list[int]):
    """A constant that owns its memory: of a given array OpenVINO keeps the address alone."""
    tensor = openvino.Tensor(openvino.Type.u4, openvino.Shape(shape))
    tensor.data[:] = nibbles(codes.reshape(-1))
    return ops.constant(tensor)
