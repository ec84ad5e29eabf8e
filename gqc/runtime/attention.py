"""The operator of attention that `gqc.generator` calls: `torch.ops.gqc.attend`.

Few rows on a CPU, as a language model decodes, are a kernel of gqc's own; all else is PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

from gqc.codegen import cpu
from gqc.codegen.cpu import isa
from gqc.dialects.torch_types import ELEMENT_TYPES
from gqc.passes.attention_kernel import STEP, Heads, build_attention
from gqc.runtime.gradients import is_plain, needs_gradient

FEW_ROWS = 4
"""Rows up to which the kernel is called, which reads keys and values for each of them."""
MOST_ROOM = 1 << 17
"""Positions whose scores, half a MiB, fit on the stack of a thread that has one MiB."""

torch.library.define("gqc::attend", "(Tensor q, Tensor keys, Tensor values, float scale) -> Tensor")


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Causal attention of q [1, H, S, D], the last S of L positions, to keys and values
    [1, H/G, L, D], in one dtype; scores times `scale`. Gives [1, S, H, D].

    Each G heads share keys. Keys and values may be the first L of a cache that has room for more,
    of which the kernel reads some: they are numbers.
    """
    y = attend_fake(q, keys, values, scale)
    attend_into(q, keys, values, scale, out=y)
    return y


torch.library.impl("gqc::attend", "default", attend)


@torch.library.impl("gqc::attend", "Autograd")
def attend_with_gradients(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Where gradients are asked for, all is PyTorch's."""
    if needs_gradient((q, keys, values)):
        return in_torch(q, keys, values, scale)
    if is_plain(q):
        return attend(q, keys, values, scale)
    with torch._C._AutoDispatchBelowAutograd():
        return torch.ops.gqc.attend.default(q, keys, values, scale)


def attend_into(q: Tensor, keys: Tensor, values: Tensor, scale: float, *, out: Tensor) -> None:
    """`attend` into a contiguous tensor [1, S, H, D]."""
    rows = q.shape[2]
    kernel = kernel_of(q, keys, values, scale) if rows <= FEW_ROWS else None
    if kernel is None:
        out.copy_(in_torch(q, keys, values, scale))
        return
    x = q.transpose(1, 2).contiguous()
    kernel(x, torch.tensor([keys.shape[2] - rows + 1]), keys, values, out)


@torch.library.register_fake("gqc::attend")
def attend_fake(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    return q.new_empty((1, q.shape[2], q.shape[1], q.shape[3]))


def kernel_of(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Callable[..., None] | None:
    """The kernel that takes these; None if there is none."""
    _, heads, _, size = q.shape
    strides = keys.stride()[1:]
    room = strides[0] // size
    plain = strides == values.stride()[1:] == (room * size, size, 1)
    if not plain or q.device.type != "cpu":
        return None
    return launcher(heads, keys.shape[1], size, room, q.dtype, scale)


@cache
def launcher(
    heads: int, shared: int, size: int, room: int, dtype: torch.dtype, scale: float
) -> Callable[..., None] | None:
    """The kernel of some shape of attention, for this CPU whatever tier a model is compiled for.

    None if no kernel takes it.
    """
    host = isa.host()
    if room % STEP or room > MOST_ROOM or size % host.lanes:
        return None
    of = Heads(heads, shared, size, room, ELEMENT_TYPES[dtype], scale)
    name = f"attend_{of.element}_{heads}x{shared}x{size}_of_{room}"
    return cpu.load(build_attention(name, f"cpu_{host.name}", of))


def in_torch(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """The G heads that share keys are rows of one product: torch's kernel for one row at a time
    takes six times as long in bf16."""
    (_, heads, rows, size), (_, groups, length, _) = q.shape, keys.shape
    shared = heads // groups
    grouped = q.reshape(1, groups, shared * rows, size)
    mask = torch.ones(rows, length, dtype=torch.bool, device=q.device).tril(length - rows)
    found = torch.nn.functional.scaled_dot_product_attention(
        grouped, keys, values, attn_mask=mask.repeat(shared, 1), scale=scale
    )
    return found.reshape(1, heads, rows, size).transpose(1, 2)
