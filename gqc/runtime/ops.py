"""`torch.ops.gqc.matmul`: the one operator a compiled model calls.

It is functional, has a fake kernel, and names its kernels by a key, so it survives
`torch.compile(fullgraph=True)`, `torch.export` and `copy.deepcopy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from xdsl.dialects.builtin import StringAttr

from gqc.backends import BACKENDS, Launcher
from gqc.dialects import gq, tile
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.torch_types import DTYPES
from gqc.targets import TARGETS


@dataclass
class Matmul:
    """The kernels of one matmul by buckets of rows, as text, built when they are first called.

    `name` is the kernels' without their bucket. x is [M, K] of `dtype`, y [M, N]; `dtypes` and
    `shapes` are those of the parts of the weight, and of the bias if there is one.
    """

    name: str
    target: str
    n: int
    k: int
    dtype: torch.dtype
    dtypes: tuple[torch.dtype, ...]
    shapes: tuple[tuple[int, ...], ...]
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
            backend = BACKENDS[TARGETS[self.target].backend]
            self.launchers[bucket] = backend.load(self.kernel(bucket))
        return self.launchers[bucket]

    def check(self, x: Tensor, rest: Sequence[Tensor], n: int) -> None:
        """Raise TypeError or ValueError unless the kernels can read these tensors."""
        if x.shape[-1] != self.k or n != self.n:
            raise ValueError(
                f"{self.key} takes x [..., {self.k}] to [..., {self.n}], "
                f"not {list(x.shape)} to [..., {n}]"
            )
        if x.dtype != self.dtype:
            raise TypeError(
                f"{self.key} was compiled for {self.dtype} activations, not {x.dtype}: "
                "convert the input, or compile a model of that dtype"
            )
        if (dtypes := tuple([t.dtype for t in rest])) != self.dtypes:
            raise TypeError(
                f"{self.key} was compiled for weights of {self.dtypes}, not {dtypes}: "
                "convert a model before it is compiled, not after"
            )
        if (shapes := tuple([t.shape for t in rest])) != self.shapes:
            raise ValueError(
                f"{self.key} reads weights of shapes {list(map(list, self.shapes))}, not "
                f"{list(map(list, shapes))}: give it the parts that gqc.compile made"
            )
        device = x.device
        if any([t.device != device for t in rest]):
            raise ValueError(f"{self.key}: the model and its input are not on one device: move one")
        if device.type != "cpu" and TARGETS[self.target].backend == "cpu":
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
    rest = (*launch.parts, *([] if launch.bias is None else [launch.bias]))
    return Matmul(
        name=launch.buckets[0][1].rsplit("_", 1)[0],
        target=target.data,
        n=gq.tensor_shape(launch.result)[-1],
        k=gq.tensor_shape(launch.x)[-1],
        dtype=DTYPES[gq.element_type(launch.x)],
        dtypes=tuple(DTYPES[gq.element_type(t)] for t in rest),
        shapes=tuple(tuple(gq.tensor_shape(t)) for t in rest),
        buckets=buckets,
    )


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
    on other shapes, or on tensors on several devices or not on the CPU if it is a CPU's kernel.
    """
    if kernel not in MATMULS:
        raise RuntimeError(f"kernel {kernel} is not known to this process: compile the model again")
    spec = MATMULS[kernel]
    rest = weights if bias is None else (*weights, bias)
    spec.check(x, rest, n)
    y = x.new_empty((*x.shape[:-1], n))
    rows = y.numel() // n
    if rows:
        flat = x.reshape(rows, spec.k)
        arrays = [t.contiguous() for t in (flat, *rest)]
        spec.launcher(rows)(*arrays, y.view(rows, n))
    return y


@torch.library.register_fake("gqc::matmul")
def matmul_fake(
    x: Tensor, weights: Sequence[Tensor], bias: Tensor | None, kernel: str, n: int
) -> Tensor:
    """Shape and dtype of the result."""
    return x.new_empty((*x.shape[:-1], n))
