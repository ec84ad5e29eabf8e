"""Run printed kernels: on a GPU, or under TRITON_INTERPRET=1 in Triton's interpreter."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gqc.codegen.triton.emitter import emit
from gqc.codegen.triton.interpreter import (
    correct_bfloat16,
    correct_scales,
    define_assembly,
    interpreting,
)
from gqc.dialects.tile import KernelOp, shape_of
from gqc.errors import GqcError
from gqc.first_calls import LOCK

if TYPE_CHECKING:
    import torch

ALIGNMENT = 16
"""Bytes that kernels compiled for aligned arrays count on."""


def load(kernel: KernelOp) -> Callable[..., None]:
    """A function of the kernel's arrays in order: x [..., K], planes, …, y [..., N], it fills.

    Tensors are contiguous and on one GPU, or on the CPU if TRITON_INTERPRET=1 was set before Triton
    was imported. Raises GqcError for a kernel that Triton cannot say (see `emit`).
    """
    if interpreting():
        correct_bfloat16()
        correct_scales()
        define_assembly()
    ranks = [len(shape_of(array)) for array in kernel.body.block.args]
    return Launcher(import_source(emit(kernel)), ranks)


def import_source(source: str) -> ModuleType:
    """A module made of source text; `@triton.jit` reads it again through `linecache`."""
    name = f"gqc_kernel_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    filename = f"<{name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType(name)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


VIEWS = {"u8": "uint8", "fp8e4nv": "float8_e4m3fn", "fp8e5": "float8_e5m2"}
"""torch's dtypes of the types of 8 bits in a signature."""


def view_of(type_: str) -> str | None:
    """What an array is taken for: `*u8` and `tensordesc<u8[16, 64]>` as uint8, others as it is."""
    return next((view for name, view in VIEWS.items() if name in type_), None)


def matrix(rows: torch.Tensor) -> torch.Tensor:
    """A contiguous [..., K] as [rows, K]."""
    return rows if rows.dim() == 2 else rows.view(-1, rows.shape[-1])


class Launcher:
    """Calls a module's `launch`, arrays of 8 bits as its signature has them, and rows as matrices.

    Where that compiles, it keeps the compiled kernel for later calls, and launches it without
    Triton's dispatch on argument types. A kept kernel counts on aligned arrays, so others go
    through `launch` each time.
    """

    def __init__(self, module: ModuleType, ranks: Sequence[int]) -> None:
        self.module = module
        self.ranks = ranks
        self.views = [view_of(type_) for type_ in module.SIGNATURE.values()][:-1]
        self.compiled: dict[torch.device, Any] = {}

    def __call__(self, *tensors: torch.Tensor) -> None:
        import torch

        ranked = zip(tensors, self.ranks, strict=True)
        tensors = tuple(matrix(t) if rank == 2 else t for t, rank in ranked)
        pairs = zip(tensors, self.views, strict=True)
        tensors = tuple(t.view(getattr(torch, view)) if view else t for t, view in pairs)
        device = tensors[0].device
        if device.type == "cpu":
            if not interpreting():
                raise GqcError(
                    "a Triton kernel was given tensors on the CPU: move the model and its inputs "
                    "to the GPU, compile for target cpu, or set TRITON_INTERPRET=1"
                )
            with LOCK:  # the interpreter runs one program at a time
                self.module.launch(*tensors)
            return
        with torch.cuda.device(device):
            if any(t.data_ptr() % ALIGNMENT for t in tensors):
                with LOCK:  # it may compile a kernel
                    self.module.launch(*tensors)
            elif device not in self.compiled:
                with LOCK:
                    self.compiled[device] = self.module.launch(*tensors)
            else:
                rows = tensors[-1].shape[0]
                describe = getattr(self.module, "describe", lambda *arrays: arrays)
                self.compiled[device][self.module.grid(rows)](*describe(*tensors), rows)
