"""TorchInductor as a backend that launches gqc's kernels itself, not through PyTorch's dispatcher.

What inductor generates calls an operator as Python does, which takes 12 µs with the checks of its
tensors: longer than many a kernel of one row. The backend has it call `launch` and
`attend_into` on tensors that the compiler has typed and allocated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._inductor import ir, lowering
from torch._inductor.compile_fx import compile_fx
from torch._inductor.select_algorithm import extern_kernels
from torch.fx import GraphModule

from gqc.runtime.attention import attend_into
from gqc.runtime.ops import registered

OPTIONS = {"size_asserts": False, "alignment_asserts": False}
"""Sizes and strides are not asserted between the kernels of a graph."""


def backend(graph: GraphModule, example_inputs: Sequence[Any]) -> Any:
    """A backend of `torch.compile`: inductor, with direct launches. Gives what runs the graph."""
    with direct_launches():
        return compile_fx(graph, example_inputs, config_patches=OPTIONS)


@contextmanager
def direct_launches() -> Iterator[None]:
    """Inside, inductor lowers gqc's operators to direct calls.

    Outside it does not: code that it generates is kept on the disk, for processes that may not have
    imported this module.
    """
    ops = torch.ops.gqc
    ours = {ops.matmul.default: lower_matmul, ops.attend.default: lower_attend}
    with mock.patch.dict(lowering.lowerings, ours):
        yield


def lower_matmul(
    x: Any,
    others: Sequence[Any],
    weights: Sequence[Any],
    bias: Any,
    kernel: str,
    sources: Sequence[Any] | None = None,
    quantizer: str | None = None,
) -> Any:
    """`gqc::matmul` as a call of `launch`, without what gradients need."""
    dtype, shape = registered(kernel).outputs[-1]
    tensors = [x, *others, *weights, *([] if bias is None else [bias])]
    inputs = [ir.ExternKernel.require_contiguous(ir.ExternKernel.realize_input(t)) for t in tensors]
    return called(launch, x, dtype, [*x.get_size()[:-1], shape[-1]], inputs, kernel)


def lower_attend(q: Any, keys: Any, values: Any, scale: float) -> Any:
    """`gqc::attend` as a call of `attend_into`."""
    batch, heads, rows, size = q.get_size()
    inputs = [ir.ExternKernel.realize_input(t) for t in (q, keys, values)]
    return called(attend_into, q, q.get_dtype(), [batch, rows, heads, size], inputs, scale)


def called(
    function: Callable[..., None],
    x: Any,
    dtype: torch.dtype,
    shape: Sequence[Any],
    inputs: Sequence[Any],
    constant: Any,
) -> Any:
    """A call of a function of `extern_kernels` that writes a new contiguous tensor."""
    layout = ir.FixedLayout(x.get_device(), dtype, list(shape))
    name = f"extern_kernels.{NAMES[function]}"
    call = ir.ExternKernelOut(layout, inputs, (constant,), python_kernel_name=name)
    return ir.TensorBox.create(call)


def launch(x: Tensor, *rest: Any, out: Tensor) -> None:
    """A launch on contiguous tensors, which the compiler has checked; the last of `rest` is its
    key."""
    *tensors, key = rest
    found = registered(key)
    found.launcher(x.numel() // found.columns)(x, *tensors, out)


NAMES: dict[Callable[..., None], str] = {launch: "gqc_launch", attend_into: "gqc_attend_into"}
"""What generated code calls them by."""

for function, name in NAMES.items():
    setattr(extern_kernels, name, function)
