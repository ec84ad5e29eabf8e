"""Run printed kernels: on a GPU, or under TRITON_INTERPRET=1 in Triton's interpreter."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from gqc.codegen.triton.emitter import emit
from gqc.codegen.triton.interpreter import (
    correct_bfloat16,
    correct_scales,
    define_assembly,
    interpreting,
)
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError

if TYPE_CHECKING:
    import torch

AS_BYTES = ("torch.int8", "torch.float8_e8m0fnu", "torch.float8_e4m3fn")
"""dtypes that kernels read as bytes."""

ALIGNMENT = 16
"""Bytes that kernels compiled for aligned arrays count on."""


def load(kernel: KernelOp) -> Callable[..., None]:
    """A function of the kernel's arrays, in order: x [M, K], planes, …, y [M, N], which it fills.

    Tensors are contiguous and on one GPU, or on the CPU if TRITON_INTERPRET=1 was set before Triton
    was imported. Raises GqcError for a kernel that Triton cannot say (see `emit`).
    """
    if interpreting():
        correct_bfloat16()
        correct_scales()
        define_assembly()
    return Launcher(import_source(emit(kernel)))


def import_source(source: str) -> ModuleType:
    """A module made of source text; `@triton.jit` reads it again through `linecache`."""
    name = f"gqc_kernel_{hashlib.sha256(source.encode()).hexdigest()[:16]}"
    filename = f"<{name}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    module = ModuleType(name)
    exec(compile(source, filename, "exec"), module.__dict__)
    return module


class Launcher:
    """Calls a module's `launch`; where that compiles, keeps the compiled kernel for later calls.

    A kept kernel is launched without Triton's dispatch on argument types. It counts on aligned
    arrays, so others go through `launch` each time.
    """

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.compiled: dict[torch.device, Any] = {}

    def __call__(self, *tensors: torch.Tensor) -> None:
        import torch

        tensors = tuple(t.view(torch.uint8) if str(t.dtype) in AS_BYTES else t for t in tensors)
        device = tensors[0].device
        if device.type == "cpu":
            if not interpreting():
                raise GqcError(
                    "a Triton kernel was given tensors on the CPU: move the model and its inputs "
                    "to the GPU, compile for target cpu, or set TRITON_INTERPRET=1"
                )
            self.module.launch(*tensors)
            return
        with torch.cuda.device(device):
            if any(t.data_ptr() % ALIGNMENT for t in tensors):
                self.module.launch(*tensors)
            elif device not in self.compiled:
                self.compiled[device] = self.module.launch(*tensors)
            else:
                rows = tensors[-1].shape[0]
                describe = getattr(self.module, "describe", lambda *arrays: arrays)
                self.compiled[device][self.module.grid(rows)](*describe(*tensors), rows)
