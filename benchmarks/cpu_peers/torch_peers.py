"""torch: its dense matmul, and ATen's kernel for int4 weights."""

from __future__ import annotations

import numpy as np
import torch

from cpu_peers import Run, copies_of
from cpu_peers.rounding import to_nearest


class Dense:
    def __init__(self, weight: np.ndarray, group: int, threads: int, dtype: str):
        torch.set_num_threads(threads)
        self.dtype = getattr(torch, dtype)
        w = torch.from_numpy(weight).to(self.dtype)
        self.nbytes = w.nbytes
        self.copies = copies_of(w.nbytes)
        self.weights = [w.clone() for _ in range(self.copies)]

    def weight(self) -> np.ndarray:
        return self.weights[0].double().numpy()

    def bind(self, x: np.ndarray) -> Run:
        inputs, linear = torch.from_numpy(x).to(self.dtype), torch.nn.functional.linear

        def run() -> torch.Tensor:
            for w in self.weights:
                y = linear(inputs, w)
            return y

        return run


class AtenInt4:
    def __init__(self, weight: np.ndarray, group: int, threads: int):
        torch.set_num_threads(threads)
        self.group, self.rounded = group, to_nearest(weight, group)
        codes = torch.from_numpy(self.rounded.codes).int()
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
        # A weight is (code − 8) · scale + offset here.
        scale, zero = map(torch.from_numpy, (self.rounded.scale, self.rounded.zero))
        offset = (8 - zero.float()) * scale
        self.scales = torch.stack((scale.T, offset.T), -1).bfloat16().contiguous()
        self.nbytes = packed.nbytes + self.scales.nbytes
        self.copies = copies_of(self.nbytes)
        self.weights = [(packed.clone(), self.scales.clone()) for _ in range(self.copies)]

    def weight(self) -> np.ndarray:
        scale, offset = self.scales.double().transpose(0, 1).unbind(-1)
        n, k = self.rounded.codes.shape
        codes = torch.from_numpy(self.rounded.codes).double().view(n, -1, self.group)
        return ((codes - 8) * scale[..., None] + offset[..., None]).reshape(n, k).numpy()

    def bind(self, x: np.ndarray) -> Run:
        inputs, matmul = torch.from_numpy(x).bfloat16(), torch.ops.aten._weight_int4pack_mm_for_cpu

        def run() -> torch.Tensor:
            for packed, scales in self.weights:
                y = matmul(inputs, packed, self.group, scales)
            return y

        return run
