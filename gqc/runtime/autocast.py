"""gqc's operators under `torch.autocast`: as linear layers, they take and give its dtype.

Kernels compute in the dtype that they were compiled for, which is at least as exact as what a dense
layer does there.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gqc.runtime.ops import Launch, registered

KEYS = ("AutocastCPU", "AutocastCUDA")
"""Dispatch keys that are on inside `torch.autocast`."""


def expected(inputs: Sequence[Tensor], launch: Launch) -> list[Tensor]:
    """Floats in the dtypes that a launch was compiled for; codes and scales as they are."""
    return [
        t.to(dtype) if t.dtype.itemsize > 1 and t.is_floating_point() else t
        for t, (dtype, _) in zip(inputs, launch.inputs, strict=True)
    ]


def matmul(
    x: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    sources: Sequence[Tensor] | None = None,
    quantizer: str | None = None,
) -> Tensor:
    """`gqc::matmul`. What an epilogue gives stays as exact as it is."""
    launch, device = registered(kernel), x.device.type
    with torch.autocast(device, enabled=False):
        x, *others = expected((x, *others), launch)
        op = torch.ops.gqc.matmul.default
        y = op(x, others, weights, bias, kernel, sources, quantizer)
        return y if launch.fused else y.to(torch.get_autocast_dtype(device))


def quantize(inputs: Sequence[Tensor], kernel: str) -> list[Tensor]:
    """`gqc::quantize`."""
    with torch.autocast(inputs[0].device.type, enabled=False):
        return torch.ops.gqc.quantize.default(expected(inputs, registered(kernel)), kernel)


for key in KEYS:
    torch.library.impl("gqc::matmul", key, matmul)
    torch.library.impl("gqc::quantize", key, quantize)
