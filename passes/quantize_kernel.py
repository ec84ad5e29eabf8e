"""Build the tile kernels that quantize activations.

A kernel reads x [M, K], quantizes blocks along K, and writes what a matmul reads: values decoded
again (`Decoded`), for a matmul that multiplies floats.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from xdsl.builder import ImplicitBuilder
from xdsl.dialects import arith, scf
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    TensorType,
    VectorType,
    f32,
    i64,
)
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from gqc.dialects import gq, tile
from gqc.targets import resolve


@dataclass(frozen=True)
class Decoded:
    """y [M, K] = code · scale as floats; the scale of the tensor is left to the matmul.

    bf16 and f32 hold every product exactly but for subnormals of theirs; f16 where no scale is
    rounded up beyond its greatest number, 65504.
    """

    element: Attribute


@dataclass(frozen=True)
class QuantizeTiling:
    """What one program makes: `rows`×`columns` elements, `step` columns at a time (0: all of K)."""

    rows: int
    columns: int
    step: int
    warps: int = 1


TILINGS = {"cpu": QuantizeTiling(1, 0, 128), "triton": QuantizeTiling(32, 128, 128, 4)}
"""By backend. A CPU's threads share rows; on a GPU a thread takes 32 elements."""


def build_quantize(
    name: str, target: str, x_type: TensorType, type_: gq.BlockScaledType, rule: str, form: Decoded
) -> tile.KernelOp:
    """The kernel that quantizes x of `x_type` [M, K] to `type_`, blocks of 1×B, by a scale rule.

    Arguments of the kernel: x, `x_tensor_scale` f32 [1] if the type has one, y [M, K].
    """
    return QuantizeKernel(name, target, x_type, type_, rule, form).build()


@dataclass
class QuantizeKernel:
    """Builds one kernel."""

    name: str
    target: str
    x_type: TensorType
    type: gq.BlockScaledType
    rule: str
    form: Decoded
    args: dict[str, SSAValue] = field(default_factory=dict)
    constants: dict[int, SSAValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = self.x_type.get_shape()
        self.k, self.block = shape[-1], self.type.block_of(shape)[-1]
        tiling = TILINGS[resolve(self.target).backend]
        self.rows, self.warps = tiling.rows, tiling.warps
        self.step = max(tiling.step, self.block)
        self.columns = max(tiling.columns, self.block) if tiling.columns else self.k

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        types = {"x": MemRefType(self.x_type.get_element_type(), (DYNAMIC_INDEX, self.k))}
        if self.type.has_tensor_scale:
            types["x_tensor_scale"] = MemRefType(f32, (1,))
        return {**types, "y": MemRefType(self.form.element, (DYNAMIC_INDEX, self.k))}

    def build(self) -> tile.KernelOp:
        arguments = self.arguments()
        self.entry = Block(arg_types=list(arguments.values()))
        for name, arg in zip(arguments, self.entry.args, strict=True):
            arg.name_hint = name
            self.args[name] = arg
        with ImplicitBuilder(self.entry):
            self.body()
        attributes: dict[str, Attribute] = {
            "summary": StringAttr(f"y = x quantized to {self.type} by {self.rule}, decoded"),
            "target": StringAttr(self.target),
            "num_warps": IntegerAttr(self.warps, i64),
            "matrix": StringAttr("none"),
        }
        return tile.KernelOp(self.name, (self.rows, self.columns), Region(self.entry), attributes)

    def constant(self, value: int) -> SSAValue:
        """An index constant, once, at the kernel's top."""
        if value not in self.constants:
            op = arith.ConstantOp(IntegerAttr(value, IndexType()))
            op.detach()
            first = self.entry.first_op
            self.entry.add_op(op) if first is None else self.entry.insert_op_before(op, first)
            self.constants[value] = named(op, f"c{value}")
        return self.constants[value]

    def body(self) -> None:
        self.m = self.offset(0, self.rows, "m")
        if "x_tensor_scale" in self.args:
            load = tile.LoadOp(
                self.args["x_tensor_scale"], [self.constant(0)], VectorType(f32, (1,))
            )
            self.tensor_scale = named(load, "tensor_scale")
        else:
            self.tensor_scale = None
        if self.step >= self.columns and self.columns < self.k:
            self.quantize(self.offset(1, self.columns, "k"))
            return
        loop = Block(arg_types=[IndexType()])
        loop.args[0].name_hint = "k"
        with ImplicitBuilder(loop):
            self.quantize(loop.args[0])
            scf.YieldOp()
        scf.ForOp(self.constant(0), self.constant(self.k), self.constant(self.step), [], loop)

    def offset(self, axis: int, size: int, name: str) -> SSAValue:
        """Where this program's tile begins along an axis."""
        program = named(tile.ProgramIdOp(axis), f"pid_{name}")
        return named(arith.MuliOp(program, self.constant(size)), name)

    def quantize(self, k: SSAValue) -> None:
        """Quantize and write `step` columns from k on."""
        x = cast(self.load("x", k), f32, "x_tile")
        op = tile.QcastOp(
            x, self.tensor_scale, self.rule, self.type.element, self.type.scale, self.block
        )
        op.codes.name_hint, op.scale.name_hint = "codes", "scale"
        q, s = cast(op.codes, f32, "q"), cast(op.scale, f32, "s")
        y = named(arith.MulfOp(q, tile.RepeatOp(s, 1, self.block).result), "y_tile")
        tile.StoreOp(cast(y, self.form.element, "y_tile"), self.args["y"], [self.m, k])

    def load(self, name: str, k: SSAValue) -> SSAValue:
        element = tile.element_of(self.args[name])
        type_ = VectorType(element, (self.rows, self.step))
        return named(tile.LoadOp(self.args[name], [self.m, k], type_), f"{name}_tile")


def cast(value: SSAValue, element: Attribute, name: str) -> SSAValue:
    """The tile in another element type, unless it has that already."""
    if tile.element_of(value) == element:
        return value
    return named(tile.CastOp(value, element), name)


def named(op: Operation, name: str) -> SSAValue:
    """The op's result, with a name that printed kernels keep."""
    op.results[0].name_hint = name
    return op.results[0]
