"""bitsandbytes: NF4 weights, as its layer repacks them for a CPU."""

from __future__ import annotations

import numpy as np
import torch
from bitsandbytes import functional, nn  # pyright: ignore[reportMissingImports]

from cpu_peers import Run, copies_of


class Nf4:
    def __init__(self, weight: np.ndarray, group: int, threads: int):
        torch.set_num_threads(threads)
        w = torch.from_numpy(weight).bfloat16()
        codes, state = functional.quantize_4bit(w, blocksize=group, quant_type="nf4")
        # The layer repacks scales in bfloat16; these have them so from the start.
        state.absmax = state.absmax.bfloat16().float()
        state.dtype = torch.float32
        self.exact = functional.dequantize_4bit(codes, state).double().numpy()
        self.nbytes = codes.nbytes + state.absmax.nbytes // 2
        self.copies = copies_of(self.nbytes)
        self.layers = [self.layer(w, group) for _ in range(self.copies)]

    def layer(self, w: torch.Tensor, group: int) -> torch.nn.Module:
        n, k = w.shape
        layer = nn.Linear4bit(k, n, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
        layer.weight = nn.Params4bit(
            w, requires_grad=False, blocksize=group, quant_type="nf4", compress_statistics=False
        )
        return layer.to("cpu").eval()

    def weight(self) -> np.ndarray:
        return self.exact

    def bind(self, x: np.ndarray) -> Run:
        inputs = torch.from_numpy(x).bfloat16()

        @torch.inference_mode()
        def run() -> torch.Tensor:
            for layer in self.layers:
                y = layer(inputs)
            return y

        return run
