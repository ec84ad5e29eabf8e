"""Gradients of gqc's operators.

Weights are frozen. The inputs, the bias, and what an epilogue reads have gradients: those of the
layer with its weight decoded, computed in float32. A quantizer passes gradients straight through,
as if it rounded nothing (the straight-through estimator, Bengio et al., arXiv 1308.3432).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd.function import once_differentiable
from xdsl.dialects.builtin import ModuleOp
from xdsl.dialects.func import FuncOp

from gqc.dialects.interpret import interpreter
from gqc.dialects.text import parse_ir
from gqc.runtime.ops import Launch, registered, run_matmul

BACKWARD = {
    "weight": "(Tensor[] weights, str kernel) -> Tensor",
    "matmul_backward": (
        "(Tensor grad, Tensor x, Tensor[] others, Tensor[] weights, Tensor? bias, str kernel,"
        " Tensor[] sources, str? quantizer) -> Tensor[]"
    ),
    "quantize_backward": "(Tensor grad, Tensor[] inputs, str kernel) -> Tensor[]",
}
"""Schemas of the operators that gradients are computed by."""

for name, schema in BACKWARD.items():
    torch.library.define(f"gqc::{name}", schema)


@cache
def fused_module(text: str) -> ModuleOp:
    return parse_ir(text)


def run_fused(launch: Launch, args: Sequence[Tensor]) -> Tensor:
    """What a launch's kernels compute besides, by torch.

    The interpreter is one call's own, for several threads may go backward at once.
    """
    module = fused_module(launch.fused)
    function = module.body.block.first_op
    assert isinstance(function, FuncOp)
    found = interpreter(module, {}).run_ssacfg_region(function.body, tuple(args), "fused")
    return found[0]


def gradients_of_fused(launch: Launch, args: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """Gradients of the arguments of what is fused, in float32 but where that rounds."""
    leaves = [arg.detach().float().requires_grad_() for arg in args]
    with torch.enable_grad():
        y = run_fused(launch, leaves)
    grad = grad.to(y.dtype).reshape(y.shape)
    return [*torch.autograd.grad(y, leaves, grad, allow_unused=True)]


def sources_of(inputs: Sequence[Tensor], launch: Launch) -> Sequence[Tensor]:
    """What a quantizer's kernel computes the quantized values from: all but the tensor scale."""
    return inputs[: launch.reads or 1]


@torch.library.impl("gqc::weight", "default")
def weight(weights: Sequence[Tensor], kernel: str) -> Tensor:
    """The weight [N, K] that the parts of a launch hold, decoded to float32.

    Raises RuntimeError on a launch of no packed weight.
    """
    return registered(kernel).weight(weights)


@torch.library.register_fake("gqc::weight")
def weight_fake(weights: Sequence[Tensor], kernel: str) -> Tensor:
    packed = registered(kernel).packed
    assert packed is not None
    return weights[0].new_empty(packed.shape, dtype=torch.float32)


def places(launch: Launch, sizes: Sequence[int], quantizer: str | None) -> list[int]:
    """Where, among x, others, weights, bias and sources, those are that have gradients.

    They are x, or what was quantized to it; the inputs of the epilogue; the bias.
    """
    _, others, weights, bias, _ = sizes
    epilogue = range(1 + others - launch.reads, 1 + others)
    end = 1 + others + weights + bias
    first = range(1) if quantizer is None else range(end, end + (registered(quantizer).reads or 1))
    return [*first, *epilogue, *range(end - bias, end)]


@torch.library.impl("gqc::matmul_backward", "default")
def matmul_backward(
    grad: Tensor,
    x: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    sources: Sequence[Tensor],
    quantizer: str | None,
) -> list[Tensor]:
    """Gradients of what `gqc::matmul` reads, each of the tensor's shape and dtype.

    They are of x, or where x is codes, of what was quantized to it (`sources`, by the kernel
    `quantizer`); then of the inputs of the epilogue, and of the bias. The values before an epilogue
    are computed again; where x is codes, from what was quantized.
    """
    launch, of = registered(kernel), None if quantizer is None else registered(quantizer)
    read = launch.epilogue_inputs(others)
    dense, factor, value = launch.weight(weights), 1.0, x
    if of is None:
        factor = prod(launch.tensor_scales(others))
    else:
        first = sources_of(sources, of)
        value = run_fused(of, first) if of.fused else first[0]
    through, rest = grad.reshape(-1, grad.shape[-1]).float(), list[Tensor | None]()
    if launch.fused:
        product = rows_of(value).float() @ dense.t() * factor
        product = product if bias is None else product + bias.float()
        above, *rest = gradients_of_fused(launch, [product, *map(rows_of, read)], through)
        through = torch.zeros_like(product) if above is None else above
    to_value = (through @ dense * factor).reshape(value.shape)
    found: list[Tensor | None] = [to_value]
    if of is not None and of.fused:
        found = gradients_of_fused(of, sources_of(sources, of), to_value)
    found += rest if bias is None else [*rest, through.sum(0)]
    tensors = [x] if of is None else sources_of(sources, of)
    tensors = [*tensors, *read, *([] if bias is None else [bias])]
    return [like(g, t) for g, t in zip(found, tensors, strict=True)]


def rows_of(other: Tensor) -> Tensor:
    """A tensor [..., N] as [M, N], and a vector [N] as it is."""
    return other if other.dim() == 1 else other.reshape(-1, other.shape[-1])


def like(grad: Tensor | None, tensor: Tensor) -> Tensor:
    """A gradient in the shape and dtype of its tensor; None is 0."""
    if grad is None:
        return torch.zeros_like(tensor)
    return grad.reshape(tensor.shape).to(tensor.dtype)


@torch.library.register_fake("gqc::matmul_backward")
def matmul_backward_fake(
    grad: Tensor,
    x: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    sources: Sequence[Tensor],
    quantizer: str | None,
) -> list[Tensor]:
    biases = [] if bias is None else [bias]
    lists = [x], others, weights, biases, sources
    tensors = [t for each in lists for t in each]
    found = places(registered(kernel), [len(each) for each in lists], quantizer)
    return [tensors[i].new_empty(tensors[i].shape) for i in found]


@torch.library.impl("gqc::quantize_backward", "default")
def quantize_backward(grad: Tensor, inputs: Sequence[Tensor], kernel: str) -> list[Tensor]:
    """Gradients of what `gqc::quantize` computes decoded values from, straight through.

    The values were divided by a tensor scale, if there is one: the last input.
    """
    launch = registered(kernel)
    sources = sources_of(inputs, launch)
    wide = grad.float()
    for scale in inputs[len(sources) :]:
        wide = wide / scale
    found = gradients_of_fused(launch, sources, wide) if launch.fused else [wide]
    return [like(g, t) for g, t in zip(found, sources, strict=True)]


@torch.library.register_fake("gqc::quantize_backward")
def quantize_backward_fake(grad: Tensor, inputs: Sequence[Tensor], kernel: str) -> list[Tensor]:
    return [t.new_empty(t.shape) for t in sources_of(inputs, registered(kernel))]


class Function(torch.autograd.Function):
    """A function that records itself at the level that the dispatcher is at.

    `torch.func` has levels of gradients, and calls an operator's autograd implementation at each;
    `torch.autograd.Function.apply` would go through all of them again.
    """

    @classmethod
    def apply(cls, *args: Any) -> Any:
        once = super(torch.autograd.Function, cls).apply  # pyright: ignore
        if inside_func():
            with enable_single_level_autograd_function():
                return once(*args)
        return once(*args)


class Matmul(Function):
    """`gqc::matmul` with gradients; lists are spread over the arguments, as autograd wants them."""

    @staticmethod
    def forward(kernel: str, quantizer: str | None, sizes: tuple[int, ...], *tensors: Any) -> Any:
        x, others, weights, bias, sources = together(tensors, sizes)
        with torch._C._AutoDispatchBelowAutograd():
            op = torch.ops.gqc.matmul.default
            return op(x[0], others, weights, one(bias), kernel, sources, quantizer)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel, ctx.quantizer, ctx.sizes, *tensors = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (x,), others, weights, bias, sources = together(ctx.saved_tensors, ctx.sizes)
        op = torch.ops.gqc.matmul_backward.default
        found = op(grad, x, others, weights, one(bias), ctx.kernel, sources, ctx.quantizer)
        grads: list[Tensor | None] = [None] * sum(ctx.sizes)
        for i, g in zip(
            places(registered(ctx.kernel), ctx.sizes, ctx.quantizer), found, strict=True
        ):
            grads[i] = g
        return (None, None, None, *grads)


class Quantize(Function):
    """`gqc::quantize` to decoded values, whose gradients go straight through."""

    @staticmethod
    def forward(kernel: str, *inputs: Tensor) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.gqc.quantize.default(inputs, kernel)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.kernel, *tensors = inputs
        ctx.count = len(tensors)
        ctx.save_for_backward(*tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        found = torch.ops.gqc.quantize_backward.default(grad, ctx.saved_tensors, ctx.kernel)
        return (None, *found, *[None] * (ctx.count - len(found)))


def together(tensors: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """Lists of some sizes, one after another."""
    rest = iter(tensors)
    return [[next(rest) for _ in range(size)] for size in sizes]


def one(tensors: Sequence[Tensor]) -> Tensor | None:
    return tensors[0] if tensors else None


class Rotate(Function):
    """`gqc::rotate`, whose matrix is symmetric: the gradient is rotated as x is."""

    @staticmethod
    def forward(x: Tensor, block: int) -> Tensor:
        with torch._C._AutoDispatchBelowAutograd():
            return torch.ops.gqc.rotate.default(x, block)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.block = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return torch.ops.gqc.rotate.default(grad, ctx.block), None


def needs_gradient(tensors: Sequence[Tensor]) -> bool:
    return torch.is_grad_enabled() and any([t.requires_grad for t in tensors])


def is_plain(x: Tensor) -> bool:
    """Whether nothing traces or transforms a call on a tensor, so that it may pass the dispatcher
    by: going through it again takes half as long as the launch of a small kernel."""
    plain = (type(x) is Tensor or type(x) is torch.nn.Parameter) and not x.is_meta
    return plain and not inside_func() and not torch._C._len_torch_dispatch_stack()


def inside_func() -> bool:
    """Whether a transformation of `torch.func` is at work."""
    return torch._C._functorch.peek_interpreter_stack() is not None  # pyright: ignore


@torch.library.impl("gqc::matmul", "Autograd")
def matmul_with_gradients(
    x: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    sources: Sequence[Tensor] | None = None,
    quantizer: str | None = None,
) -> Tensor:
    biases, given = [] if bias is None else [bias], sources or ()
    if needs_gradient((x, *others, *biases, *given)):
        sizes = 1, len(others), len(weights), len(biases), len(given)
        tensors = x, *others, *weights, *biases, *given
        return Matmul.apply(kernel, quantizer, sizes, *tensors)
    if is_plain(x):
        return run_matmul(x, others, weights, bias, kernel)
    with torch._C._AutoDispatchBelowAutograd():
        op = torch.ops.gqc.matmul.default
        return op(x, others, weights, bias, kernel, sources, quantizer)


@torch.library.impl("gqc::quantize", "Autograd")
def quantize_with_gradients(inputs: Sequence[Tensor], kernel: str) -> list[Tensor]:
    """Decoded values have gradients; those of codes are what `gqc::matmul` has sources for."""
    if needs_gradient(inputs) and registered(kernel).outputs[-1][0].is_floating_point:
        return [Quantize.apply(kernel, *inputs)]
    if is_plain(inputs[0]):
        return registered(kernel).run(inputs, ())
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gqc.quantize.default(inputs, kernel)


@torch.library.impl("gqc::rotate", "Autograd")
def rotate_with_gradients(x: Tensor, block: int) -> Tensor:
    return Rotate.apply(x, block)  # pyright: ignore[reportReturnType]


@torch.library.impl("gqc::tensor_scale", "Autograd")
def tensor_scale_without_gradients(x: Tensor, element: str) -> Tensor:
    """A scale is a constant to gradients."""
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gqc.tensor_scale.default(x, element)
