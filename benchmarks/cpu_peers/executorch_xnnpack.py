"""ExecuTorch: XNNPACK's int4 weights and dynamic int8 activations, each copy a program."""

from __future__ import annotations

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import (  # pyright: ignore
    XnnpackPartitioner,
)
from executorch.exir import to_edge_transform_and_lower  # pyright: ignore
from executorch.extension.pybindings.portable_lib import (  # pyright: ignore
    _unsafe_reset_threadpool,
)
from executorch.runtime import Runtime  # pyright: ignore
from torch import nn
from torchao.quantization import Int8DynamicActivationIntxWeightConfig, PerGroup, quantize_

from cpu_peers import Run, copies_of


class DynamicInt4:
    def __init__(self, weight: np.ndarray, group: int, threads: int):
        _unsafe_reset_threadpool(threads)
        n, k = weight.shape
        self.nbytes = n * k // 2 + 2 * n * k // group  # bfloat16 scales
        self.copies = copies_of(self.nbytes)
        layer = nn.Linear(k, n, bias=False)
        layer.weight = nn.Parameter(torch.from_numpy(weight), requires_grad=False)
        config = Int8DynamicActivationIntxWeightConfig(
            weight_dtype=torch.int4,  # pyright: ignore[reportAttributeAccessIssue]
            weight_granularity=PerGroup(group),
        )
        quantize_(layer, config)
        self.exact = layer.weight.dequantize().double().numpy()
        program = lowered(layer.eval(), k)
        # A program that is loaded again packs its weight again.
        self.programs = [Runtime.get().load_program(program) for _ in range(self.copies)]
        self.methods = [program.load_method("forward") for program in self.programs]

    def weight(self) -> np.ndarray:
        return self.exact

    def bind(self, x: np.ndarray) -> Run:
        inputs = [torch.from_numpy(x)]

        def run() -> torch.Tensor:
            for method in self.methods:
                (y,) = method.execute(inputs)
            return y

        return run


def lowered(layer: nn.Module, k: int) -> bytes:
    """A program of a layer on any number of rows."""
    rows = {0: torch.export.Dim("rows", min=1, max=4096)}
    exported = torch.export.export(layer, (torch.randn(2, k),), dynamic_shapes=(rows,))
    edge = to_edge_transform_and_lower(exported, partitioner=[XnnpackPartitioner()])
    return edge.to_executorch().buffer
