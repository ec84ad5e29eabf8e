"""The memory that calibration takes: that of one block's statistics, and no more of more blocks."""

from __future__ import annotations

from peak_memory import numbers_of

CALIBRATING = """
import torch
import gqc
from peak_memory import peak_memory

class Stack(torch.nn.Module):
    def __init__(self, blocks):
        super().__init__()
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(1024, 1024, False) for _ in range(blocks))

    def forward(self, x):
        for block in self.blocks:
            x = torch.tanh(8 * block(x))
        return x

inputs = [torch.randn(64, 1024) for _ in range(2)]
models = [Stack(2), Stack(10)]
peaks = []
for model in models:
    gqc.quantize(model, scheme="int4_g128+gptq", calibration=inputs, progress=False)
    peaks.append(peak_memory())
print(peaks[0], peaks[1] - peaks[0])
"""
STATISTICS = 1024 * 1024 * 4
"""Bytes of what GPTQ sums up of one layer's inputs."""
QUANTIZED = 1024 * 1024 * 5 // 4
"""Bytes of one quantized weight, its codes a byte each, and scales."""


def test_it_does_not_grow_with_the_number_of_blocks() -> None:
    _, grown = numbers_of(CALIBRATING)
    assert grown < 8 * QUANTIZED + 2 * STATISTICS  # of 8 more blocks
