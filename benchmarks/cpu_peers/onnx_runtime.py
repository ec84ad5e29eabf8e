"""ONNX Runtime: MatMulNBits, its copies in one graph."""

from __future__ import annotations

import numpy as np
import onnxruntime  # pyright: ignore[reportMissingImports]
from onnx import TensorProto, helper, numpy_helper  # pyright: ignore[reportMissingImports]

from cpu_peers import Run, copies_of
from cpu_peers.rounding import Codes, nibbles, to_nearest


class MatMulNBits:
    def __init__(self, weight: np.ndarray, group: int, threads: int, accuracy: int):
        self.rounded, self.shape, self.accuracy = to_nearest(weight, group), weight.shape, accuracy
        self.nbytes = sum(part.nbytes for part in packed(self.rounded))
        self.copies = copies_of(self.nbytes)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        model = self.model().SerializeToString()
        self.session = onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])

    def model(self):
        """A graph of all copies."""
        n, k = self.shape
        nodes, initializers, outputs = [], [], []
        attributes = {"N": n, "K": k, "bits": 4, "block_size": self.rounded.group}
        for i in range(self.copies):
            names = [f"{part}{i}" for part in ("codes", "scale", "zero")]
            initializers += map(numpy_helper.from_array, packed(self.rounded.shifted(i)), names)
            nodes.append(
                helper.make_node(
                    "MatMulNBits",
                    ["x", *names],
                    [f"y{i}"],
                    domain="com.microsoft",
                    accuracy_level=self.accuracy,
                    **attributes,
                )
            )
            outputs.append(helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, ["m", n]))
        x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["m", k])
        graph = helper.make_graph(nodes, "copies", [x], outputs, initializers)
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    def weight(self) -> np.ndarray:
        return self.rounded.dequantized()

    def bind(self, x: np.ndarray) -> Run:
        binding = self.session.io_binding()
        binding.bind_cpu_input("x", x)
        values = [np.empty((len(x), self.shape[0]), np.float32) for _ in range(self.copies)]
        for i, y in enumerate(values):
            pointer = y.ctypes.data
            binding.bind_output(f"y{i}", "cpu", 0, np.float32, y.shape, pointer)

        def run() -> np.ndarray:
            self.session.run_with_iobinding(binding)
            return values[0]

        return run


def packed(rounded: Codes) -> tuple[np.ndarray, ...]:
    """Codes [N, G, group / 2], scales [N, G] and zero points [N, G / 2]."""
    codes = nibbles(rounded.codes).reshape(*rounded.scale.shape, -1)
    return codes, rounded.scale, nibbles(rounded.zero)
