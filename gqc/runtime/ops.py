"""The operators that a compiled model calls: `torch.ops.gqc.matmul`, and where activations are
quantized or rotated, `quantize`, `tensor_scale` and `rotate`.

They are functional, have fake kernels, and name their kernels by a key, so they survive
`torch.compile(fullgraph=True)`, `torch.export` and `copy.deepcopy`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from weakref import WeakKeyDictionary, WeakValueDictionary

import torch
from torch import Tensor
from xdsl.dialects.builtin import ModuleOp, StringAttr, TensorType
from xdsl.dialects.func import FuncOp, ReturnOp
from xdsl.ir import Region
from xdsl.rewriter import Rewriter

from gqc.backends import BACKENDS, Launcher
from gqc.dialects import gq, tile
from gqc.dialects.gq_attributes import BlockScaledType
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.torch_types import DTYPES
from gqc.first_calls import LOCK
from gqc.formats import rotation
from gqc.formats.byte_layouts import sized
from gqc.formats.elements import ELEMENTS
from gqc.formats.microscaling import nvfp4_tensor_scale
from gqc.targets import TARGETS

Arrays = tuple[tuple[torch.dtype, tuple[int, ...]], ...]
"""dtypes and shapes of arrays; a free number of rows is dynamic (`byte_layouts.sized`)."""


@dataclass(frozen=True)
class Packed:
    """A packed weight [N, K]: its type, its shape, and the layout of its parts."""

    type: BlockScaledType
    shape: tuple[int, ...]
    layout: gq.LayoutAttr


@dataclass
class Launch:
    """The kernels of one launch by buckets of rows, as text, built when they are first called.

    `name` is the kernels' without their bucket. Each takes the inputs, the weights (a bias is the
    last of them), and the outputs. The first input [..., K], here given as K, has free rows, and so
    have others like it, and inputs and outputs that hold scales. The last output is [..., N].

    `packed` is the weight that the weights are parts of. `fused` is the text of a function: what
    the kernels compute besides (`gq.launch`). It reads `reads` of the inputs.
    """

    name: str
    target: str
    inputs: Arrays
    weights: Arrays
    outputs: Arrays
    buckets: tuple[tuple[int, str], ...]
    packed: Packed | None = None
    fused: str = ""
    reads: int = 0
    launchers: dict[str, Launcher] = field(default_factory=dict, compare=False)
    """By text: buckets of one tile have one kernel."""

    @cached_property
    def key(self) -> str:
        """The name, the target, and a digest of all kernels."""
        told = (self.target, self.buckets, *([self.fused] if self.fused else []))
        digest = hashlib.sha256(repr(told).encode()).hexdigest()[:12]
        return f"{self.name}.{self.target}.{digest}"

    def kernel(self, bucket: int) -> tile.KernelOp:
        """The kernel of a bucket: the compiler's, or read from its text once that is gone."""
        text = self.buckets[bucket][1]
        op = KERNELS.get(text) or parse_ir(text).body.block.first_op
        assert isinstance(op, tile.KernelOp)
        return op

    def launcher(self, rows: int) -> Launcher:
        """The launcher of the first bucket that holds this many rows."""
        bucket = 0
        while 0 <= self.buckets[bucket][0] < rows:
            bucket += 1
        text = self.buckets[bucket][1]
        if text not in self.launchers:
            with LOCK:  # of several threads one loads the kernel
                if text not in self.launchers:
                    backend = BACKENDS[TARGETS[self.target].backend]
                    self.launchers[text] = backend.load(self.kernel(bucket))
        return self.launchers[text]

    def results(self, x: Tensor) -> list[Tensor]:
        """Empty outputs for x [..., K], the last one [..., N]."""
        outer = x.shape[:-1]
        *shapes, (dtype, shape) = self.outputs
        y = x.new_empty((*outer, shape[-1]), dtype=dtype)
        if not shapes:
            return [y]
        rows = prod(outer)
        return [*(x.new_empty(sized(shape, rows), dtype=dtype) for dtype, shape in shapes), y]

    def traced(self, x: Tensor) -> list[Tensor]:
        """`results`, of an x that is checked (see `check_x`)."""
        self.check_x(x)
        return self.results(x)

    def run(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> list[Tensor]:
        """Check the tensors, and launch on them. Raises TypeError and ValueError (see `check`).

        A language model calls this some hundred times a token: what is the same for all calls is
        computed once.
        """
        self.check(inputs, weights)
        outputs = self.results(inputs[0])
        rows = inputs[0].numel() // self.columns
        if rows:
            arrays = [t.contiguous() for t in (*inputs, *weights)]
            self.launcher(rows)(*arrays, *outputs)
        return outputs

    @cached_property
    def columns(self) -> int:
        """K of the first input."""
        return self.inputs[0][1][-1]

    @cached_property
    def weight_dtypes(self) -> list[torch.dtype]:
        return [dtype for dtype, _ in self.weights]

    @cached_property
    def weight_shapes(self) -> list[tuple[int, ...]]:
        return [shape for _, shape in self.weights]

    def check_x(self, x: Tensor) -> None:
        """Raise TypeError or ValueError unless the kernels can read this activation."""
        if x.shape[-1] != self.columns:
            raise ValueError(f"{self.key} takes x [..., {self.columns}], not {list(x.shape)}")
        dtype = self.inputs[0][0]
        if x.dtype != dtype:
            raise TypeError(
                f"{self.key} was compiled for {dtype} activations, not {x.dtype}: "
                "convert the input, or compile a model of that dtype"
            )

    def check(self, inputs: Sequence[Tensor], weights: Sequence[Tensor]) -> None:
        """Raise TypeError or ValueError unless the kernels can read these tensors."""
        x = inputs[0]
        self.check_x(x)
        if len(inputs) != len(self.inputs):
            raise ValueError(f"{self.key} takes {len(self.inputs)} inputs, not {len(inputs)}")
        if len(inputs) > 1:
            self.check_others(inputs)
        if (dtypes := [t.dtype for t in weights]) != self.weight_dtypes:
            raise TypeError(
                f"{self.key} was compiled for weights of {self.weights}, not {dtypes}: "
                "convert a model before it is compiled, not after"
            )
        if (shapes := [t.shape for t in weights]) != self.weight_shapes:
            raise ValueError(
                f"{self.key} reads weights of {self.weights}, not {list(map(list, shapes))}: "
                "give it the parts that gqc.compile made"
            )
        device = x.device
        if any([t.device != device for t in (*inputs[1:], *weights)]):
            raise ValueError(f"{self.key}: the model and its input are not on one device: move one")
        if device.type != "cpu" and TARGETS[self.target].backend == "cpu":
            raise ValueError(f"{self.key} runs on the CPU: move the model and its input there")

    def check_others(self, inputs: Sequence[Tensor]) -> None:
        """Raise ValueError unless what the kernels read beside x is of x's rows."""
        rows = inputs[0].numel() // self.columns
        expected = tuple([(dtype, sized(shape, rows)) for dtype, shape in self.inputs[1:]])
        flat = [
            t.reshape(-1, t.shape[-1]) if len(shape) == 2 else t
            for t, (_, shape) in zip(inputs, self.inputs, strict=True)
        ]
        given = tuple([(t.dtype, t.shape) for t in flat[1:]])
        if given != expected:
            raise ValueError(f"{self.key} takes {expected} beside x, not {given}")

    def epilogue_inputs(self, others: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those of the inputs beside x that the epilogue reads: the last."""
        return others[len(others) - self.reads :]

    def tensor_scales(self, others: Sequence[Tensor]) -> Sequence[Tensor]:
        """Those that x is multiplied by."""
        return others[: len(others) - self.reads]

    def weight(self, parts: Sequence[Tensor]) -> Tensor:
        """The weight [N, K] that parts hold, decoded to float32. Raises RuntimeError if it is an
        activation, as where two are multiplied."""
        if self.packed is None:
            raise RuntimeError(f"{self.key} multiplies two activations: it has no gradients")
        row = self.packed.layout.row
        return row.unpack(parts, self.packed.type, self.packed.shape).dequantize()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "launchers": {}}


LAUNCHES: dict[str, Launch] = {}
"""Launches of this process, by key."""


def register(launch: Launch) -> str:
    """Make a launch known to the operators; the same launch has the same key again."""
    key = launch.key
    LAUNCHES.setdefault(key, launch)
    return key


def registered(key: str) -> Launch:
    """The launch of a key. Raises RuntimeError if this process does not know it."""
    if key not in LAUNCHES:
        raise RuntimeError(f"kernel {key} is not known to this process: compile the model again")
    return LAUNCHES[key]


TEXTS: WeakKeyDictionary[tile.KernelOp, str] = WeakKeyDictionary()
"""Texts of kernels, printed once: the layers of a model share few."""

KERNELS: WeakValueDictionary[str, tile.KernelOp] = WeakValueDictionary()
"""The same by text."""


def kernel_text(kernel: tile.KernelOp) -> str:
    """Text of a kernel."""
    if kernel not in TEXTS:
        TEXTS[kernel] = print_ir(kernel, locations=False)
        KERNELS[TEXTS[kernel]] = kernel
    return TEXTS[kernel]


def launch_of(op: gq.LaunchOp, kernels: Mapping[str, tile.KernelOp]) -> Launch:
    """What an operation runs, given the kernels of its module by name."""
    buckets = tuple((rows, kernel_text(kernels[name])) for rows, name in op.buckets)
    kernel = kernels[op.buckets[0][1]]
    target = kernel.attributes["target"]
    assert isinstance(target, StringAttr)
    arrays = [(DTYPES[tile.element_of(a)], tile.shape_of(a)) for a in kernel.body.block.args]
    inputs, outputs = len(op.inputs), len(arrays) - len(op.outputs)
    results = [(DTYPES[gq.element_type(r)], gq.tensor_shape(r)) for r in op.outputs]
    read = 0 if op.fused is None else len(op.fused.block.args)
    return Launch(
        name=op.buckets[0][1].rsplit("_", 1)[0],
        target=target.data,
        inputs=tuple(arrays[:inputs]),
        weights=tuple(arrays[inputs:outputs]),
        outputs=tuple(results),
        buckets=buckets,
        packed=packed_of(op),
        fused="" if op.fused is None else fused_text(op.fused),
        reads=read - 1 if read and len(op.parts) else read,
    )


def packed_of(op: gq.LaunchOp) -> Packed | None:
    """The packed weight that a launch multiplies by, if that is one."""
    match op.attributes.get("packed"), op.attributes.get("layout"):
        case TensorType() as packed, gq.LayoutAttr() as layout:
            type_ = gq.block_scaled(packed)
            assert type_ is not None
            return Packed(type_, packed.get_shape(), layout)
    return None


def fused_text(region: Region) -> str:
    """What is fused, as the text of a module with one function."""
    body = region.clone()
    last = body.block.last_op
    assert isinstance(last, gq.YieldOp)
    types = [argument.type for argument in body.block.args]
    results = [last.value.type]
    Rewriter.replace_op(last, ReturnOp(last.value))
    function = FuncOp("fused", (types, results), body)
    return print_ir(ModuleOp([function]), locations=False)


LIBRARY = {
    "matmul": (
        "(Tensor x, Tensor[] others, Tensor[] weights, Tensor? bias, str kernel,"
        " Tensor[]? sources=None, str? quantizer=None) -> Tensor"
    ),
    "quantize": "(Tensor[] inputs, str kernel) -> Tensor[]",
    "tensor_scale": "(Tensor x, str element) -> Tensor",
    "rotate": "(Tensor x, int block) -> Tensor",
}
"""Schemas of the operators."""

for name, schema in LIBRARY.items():
    torch.library.define(f"gqc::{name}", schema)


def run_matmul(
    x: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    sources: Sequence[Tensor] | None = None,
    quantizer: str | None = None,
) -> Tensor:
    """x[…, K] by the packed weight [N, K], + bias [N], and the kernel's epilogue on that, if any.

    The result is [..., N], or [..., N/2] of what is made of two halves, in the dtype compiled for.
    `others` are first scales of x, where x is codes (its block scales) or was divided by a scale of
    the whole tensor, then what the epilogue reads, [..., N] or [N]. `weights` are the parts of the
    kernel's layout, in its order. Where x is codes, `sources` are what the launch `quantizer` made
    them of: they have the gradients. Raises RuntimeError on a kernel this process does not know,
    TypeError on tensors of another dtype than compiled for, ValueError on other shapes, or on
    tensors on several devices or not on the CPU if it is a CPU's kernel.
    """
    rest = weights if bias is None else (*weights, bias)
    return registered(kernel).run((x, *others), rest)[0]


torch.library.impl("gqc::matmul", "default", run_matmul)


@torch.library.impl("gqc::quantize", "default")
def quantize(inputs: Sequence[Tensor], kernel: str) -> list[Tensor]:
    """What a kernel makes of x[…, K], or of what it computes x from, and a tensor scale if any.

    Either the values of codes times block scales, [..., K] in the dtype of x; or scales and codes,
    as a matrix unit reads them. Raises what `matmul` raises.
    """
    return registered(kernel).run(inputs, ())


@torch.library.impl("gqc::tensor_scale", "default")
def tensor_scale(x: Tensor, element: str) -> Tensor:
    """Scale of a whole tensor, float32 [1]: see `formats.microscaling.nvfp4_tensor_scale`."""
    return nvfp4_tensor_scale(x.float().abs(), ELEMENTS[element]).reshape(1)


@torch.library.impl("gqc::rotate", "default")
def rotate(x: Tensor, block: int) -> Tensor:
    """x [..., K] with each `block` elements of K rotated: see `formats.rotation.rotate`."""
    return rotation.rotate(x, block)


@torch.library.register_fake("gqc::matmul")
def matmul_fake(
    x: Tensor,
    others: Sequence[Tensor],
    weights: Sequence[Tensor],
    bias: Tensor | None,
    kernel: str,
    sources: Sequence[Tensor] | None = None,
    quantizer: str | None = None,
) -> Tensor:
    return registered(kernel).traced(x)[0]


@torch.library.register_fake("gqc::quantize")
def quantize_fake(inputs: Sequence[Tensor], kernel: str) -> list[Tensor]:
    return registered(kernel).traced(inputs[0])


@torch.library.register_fake("gqc::tensor_scale")
def tensor_scale_fake(x: Tensor, element: str) -> Tensor:
    return x.new_empty(1, dtype=torch.float32)


@torch.library.register_fake("gqc::rotate")
def rotate_fake(x: Tensor, block: int) -> Tensor:
    return x.new_empty(x.shape)
