"""`torch.ops.gqc.matmul`: the one operator a compiled model calls.

It is functional, has a fake kernel, and names its kernels by a key, so it survives
`torch.compile(fullgraph=True)`, `torch.export` and `copy.deepcopy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from xdsl.dialects.builtin import StringAttr

from gqc.dialects import gq, tile
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.torch_types import DTYPES
from gqc.targets import TARGETS

Launcher = Callable[..., None]
"""Runs a kernel on (x [M, K], parts…, bias?, y [M, N]), contiguous, and writes y."""


def load(backend: str, kernel: tile.KernelOp) -> Launcher:
    """The launcher that a target's backend makes of a kernel."""
    if backend == "cpu":
        from gqc.codegen.cpu import load
    else:
        from gqc.codegen.triton import load
    return load(kernel)


@dataclass
class Matmul:
    """The kernels of one matmul by buckets of rows, as text, built when they are first called.

    `name` is the kernels' without their bucket, `columns` is K; `dtypes` are those of x, the parts
    of the weight, and the bias if there is one.
    """

    name: str
    target: str
    columns: int
    dtypes: tuple[torch.dtype, ...]
    buckets: tuple[tuple[int, str], ...]
    launchers: dict[int, Launcher] = field(default_factory=dict, compare=False)

    @cached_property
    def key(self) -> str:
        """The name, the target, and a digest of all kernels."""
        digest = hashlib.sha256(repr((self.target, self.buckets)).encode()).hexdigest()[:12]
        return f"{self.name}.{self.target}.{digest}"

    def kernel(self, bucket: int) -> tile.KernelOp:
        """The kernel of a bucket."""
        op = parse_ir(self.buckets[bucket][1]).body.block.first_op
        assert isinstance(op, tile.KernelOp)
        return op

    def launcher(self, rows: int) -> Launcher:
        """The launcher of the first bucket that holds this many rows."""
        bucket = next(i for i, (most, _) in enumerate(self.buckets) if rows <= most or most < 0)
        if bucket not in self.launchers:
            self.launchers[bucket] = load(TARGETS[self.target].backend, self.kernel(bucket))
        return self.launchers[bucket]

    def check(self, x: Tensor, rest: Sequence[Tensor]) -> None:
        """Raise TypeError or ValueError unless the kernels can read these tensors."""
        if x.shape[-1] != self.columns:
            raise ValueError(f"{self.key} takes x [..., {self.columns}], not {list(x.shape)}")
        if x.dtype != self.dtypes[0]:
            raise TypeError(
                f"{self.key} was compiled for {self.dtypes[0]} activations, not {x.dtype}: "
                "convert the input, or compile a model of that dtype"
            )
        if tuple(t.dtype for t in rest) != self.dtypes[1:]:
            raise TypeError(
                f"{self.key} was compiled for weights of {self.dtypes[1:]}, not "
                f"{tuple(t.dtype for t in rest)}: convert a model before it is compiled, not after"
            )
        on_cpu = all(t.device.type == "cpu" for t in (x, *rest))
        if TARGETS[self.target].backend == "cpu" and not on_cpu:
            raise ValueError(f"{self.key} runs on the CPU: move the model and its input there")

    def __getstate__(self) -> dict:
        return {**self.__dict__, "launchers": {}}


MATMULS: dict[str, Matmul] = {}
"""Matmuls of this process, by key."""


def register(matmul: Matmul) -> str:
    """Make a matmul known to the operator; the same matmul has the same key again."""
    key = matmul.key
    MATMULS.setdefault(key, matmul)
    return key


TEXTS: WeakKeyDictionary[tile.KernelOp, str] = WeakKeyDictionary()
"""Texts of kernels, printed once: the layers of a model share few."""


def kernel_text(kernel: tile.KernelOp) -> str:
    """Text of a kernel."""
    if kernel not in TEXTS:
        TEXTS[kernel] = print_ir(kernel, locations=False)
    return TEXTS[kernel]


def matmul_of(launch: gq.LaunchOp, kernels: Mapping[str, tile.KernelOp]) -> Matmul:
    """What a launch runs, given the kernels of its module by name."""
    buckets = tuple((rows, kernel_text(kernels[name])) for rows, name in launch.buckets)
    target = kernels[launch.buckets[0][1]].attributes["target"]
    assert isinstance(target, StringAttr)
    tensors = (launch.x, *launch.parts, *([] if launch.bias is None else [launch.bias]))
    dtypes = tuple(DTYPES[gq.element_type(t)] for t in tensors)
    name = launch.buckets[0][1].rsplit("_", 1)[0]
    return Matmul(name, target.data, gq.tensor_shape(launch.x)[-1], dtypes, buckets)


torch.library.define(
    "gqc::matmul", "(Tensor x, Tensor[] weights, Tensor? bias, str kernel, int n) -> Tensor"
)


# For inference: no gradients flow through the operator, and none are recorded.
torch.library.impl("gqc::matmul", "Autograd", torch.library.fallthrough_kernel)


@torch.library.impl("gqc::matmul", "default")
def matmul(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, kernel: str, n: int
) -> Tensor:
    """x[…, K] by the packed weight [N, K], + bias [N]: [..., N] in the dtype of x.

    `weights` are the parts of the kernel's layout, in its order. Raises RuntimeError on a kernel
    this process does not know, TypeError on tensors of another dtype than compiled for, ValueError
    on another K, or on tensors elsewhere if it is a CPU's kernel.
    """
    if kernel not in MATMULS:
        raise RuntimeError(f"kernel {kernel} is not known to this process: compile the model again")
    spec = MATMULS[kernel]
    rest = weights if bias is None else (*weights, bias)
    spec.check(x, rest)
    y = x.new_empty((*x.shape[:-1], n))
    rows = y.numel() // n
    if rows:
        flat = x.reshape(rows, x.shape[-1]).contiguous()
        spec.launcher(rows)(flat, *rest, y.view(rows, n))
    return y


@torch.library.register_fake("gqc::matmul")
def matmul_fake(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, kernel: str, n: int
) -> Tensor:
    """Shape and dtype of the result."""
    return x.new_empty((*x.shape[:-1], n))
