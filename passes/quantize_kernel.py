"""Build the tile kernels that quantize activations.

A kernel reads x [M, K], quantizes blocks along K, and writes what a matmul reads: values decoded
again (`Decoded`), for one that multiplies floats, or scales and codes (`Packed`), for one whose
matrix unit takes them.
"""

from __future__ import annotations

from dataclasses import dataclass

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
    i8,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.dialects import gq, tile
from gqc.formats.byte_layouts import ATOM_COLUMNS, stored_element
from gqc.formats.elements import ELEMENTS
from gqc.passes.kernel_builder import KernelBuilder, cast, named
from gqc.passes.scaled_matmul_kernel import element_named
from gqc.targets import resolve


@dataclass(frozen=True)
class Decoded:
    """y [M, K] = code · scale as floats; the scale of the tensor is left to the matmul.

    bf16 and f32 hold every product exactly but for subnormals of theirs; f16 where no scale is
    rounded up beyond its greatest number, 65504.
    """

    element: Attribute

    def __str__(self) -> str:
        return f"decoded_{self.element}"


@dataclass(frozen=True)
class Packed:
    """scale, then codes as bytes i8 [M, K · bits / 8], the even ones of 4 bits low.

    These are the parts of the layout `bytes` (`gqc.formats.byte_layouts`), scales at the place that
    it calls `scales`: linear, or swizzle_32_4_4, where every byte is written: rows and blocks
    beyond the end have the scale of zeros.
    """

    scales: str

    def __str__(self) -> str:
        return f"packed_{self.scales}"

    @property
    def swizzled(self) -> bool:
        return self.scales == "swizzle_32_4_4"


@dataclass(frozen=True)
class QuantizeTiling:
    """What one program makes: `rows`×`columns` elements, `step` columns at a time (0: all of K)."""

    rows: int
    columns: int
    step: int
    warps: int = 1


TILINGS = {"cpu": QuantizeTiling(1, 0, 128), "triton": QuantizeTiling(32, 128, 128, 4)}
"""By backend. A CPU's threads share rows; on a GPU a thread takes 32 elements."""

SWIZZLED = QuantizeTiling(128, 128, 128, 16)
"""Where scales are swizzled, a program fills whole panels of theirs: 128 rows by 4 blocks."""


def build_quantize(
    name: str,
    target: str,
    x_type: TensorType,
    type_: gq.BlockScaledType,
    rule: str,
    form: Decoded | Packed,
) -> tile.KernelOp:
    """The kernel that quantizes x of `x_type` [M, K] to `type_`, blocks of 1×B, by a scale rule.

    Arguments of the kernel: x, `x_tensor_scale` f32 [1] if the type has one, then y [M, K] or
    scale and codes, as the form says.
    """
    return QuantizeKernel(name, target, x_type, type_, rule, form).build()


@dataclass
class QuantizeKernel(KernelBuilder):
    """Builds one kernel."""

    name: str
    target: str
    x_type: TensorType
    type: gq.BlockScaledType
    rule: str
    form: Decoded | Packed

    def __post_init__(self) -> None:
        shape = self.x_type.get_shape()
        self.k, self.block = shape[-1], self.type.block_of(shape)[-1]
        self.packed = isinstance(self.form, Packed)
        self.stored = ELEMENTS[stored_element(self.type.format.name)]
        self.swizzled = isinstance(self.form, Packed) and self.form.swizzled
        tiling = SWIZZLED if self.swizzled else TILINGS[resolve(self.target).backend]
        self.rows, self.warps = tiling.rows, tiling.warps
        self.step = max(tiling.step, self.block)
        self.columns = max(tiling.columns, self.block) if tiling.columns else self.k

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        types = {"x": MemRefType(self.x_type.get_element_type(), (DYNAMIC_INDEX, self.k))}
        if self.type.has_tensor_scale:
            types["x_tensor_scale"] = MemRefType(f32, (1,))
        if isinstance(self.form, Decoded):
            return {**types, "y": MemRefType(self.form.element, (DYNAMIC_INDEX, self.k))}
        layout = gq.LayoutAttr("bytes", scales=self.form.scales)
        codes, scale, *_ = layout.part_types(TensorType(self.type, self.x_type.get_shape()))
        tiles = scale.get_shape()[1:]  # all but the first dimension, that of rows
        types["scale"] = MemRefType(self.type.scale, (DYNAMIC_INDEX, *tiles))
        return {**types, "codes": MemRefType(i8, (DYNAMIC_INDEX, codes.get_shape()[-1]))}

    def bytes_of(self, columns: int) -> int:
        """Bytes that so many codes of a row take."""
        return columns * self.stored.bits // 8

    def build(self) -> tile.KernelOp:
        self.fill()
        what = "scale, codes" if self.packed else "y"
        summary = (
            f"{what} = x in blocks of {self.block}, {self.type.element} under {self.type.scale}"
        )
        columns = self.bytes_of(self.columns) if self.packed else self.columns
        attributes: dict[str, Attribute] = {
            "summary": StringAttr(summary),
            "target": StringAttr(self.target),
            "num_warps": IntegerAttr(self.warps, i64),
            "matrix": StringAttr("none"),
        }
        return tile.KernelOp(self.name, (self.rows, columns), Region(self.entry), attributes)

    def body(self) -> None:
        self.pid_m = named(tile.ProgramIdOp(0), "pid_m")
        self.m = self.times(self.pid_m, self.rows, "m")
        if "x_tensor_scale" in self.args:
            load = tile.LoadOp(
                self.args["x_tensor_scale"], [self.constant(0)], VectorType(f32, (1,))
            )
            self.tensor_scale = named(load, "tensor_scale")
        else:
            self.tensor_scale = None
        if self.columns < self.k or self.packed:
            self.pid_k = named(tile.ProgramIdOp(1), "pid_k")
            self.quantize(self.times(self.pid_k, self.columns, "k"))
            return
        loop = Block(arg_types=[IndexType()])
        loop.args[0].name_hint = "k"
        with ImplicitBuilder(loop):
            self.quantize(loop.args[0])
            scf.YieldOp()
        scf.ForOp(self.constant(0), self.constant(self.k), self.constant(self.step), [], loop)

    def times(self, value: SSAValue, factor: int, name: str) -> SSAValue:
        return value if factor == 1 else named(arith.MuliOp(value, self.constant(factor)), name)

    def quantize(self, k: SSAValue) -> None:
        """Quantize and write `step` columns from k on."""
        x = cast(self.load("x", k), f32, "x_tile")
        op = tile.QcastOp(
            x, self.tensor_scale, self.rule, self.type.element, self.type.scale, self.block
        )
        op.codes.name_hint, op.scale.name_hint = "codes", "scale"
        if self.packed:
            self.store_scale(op.scale)
            self.store_codes(op.codes)
        else:
            self.store_values(op, k)

    def store_values(self, op: tile.QcastOp, k: SSAValue) -> None:
        assert isinstance(self.form, Decoded)
        q, s = cast(op.codes, f32, "q"), cast(op.scale, f32, "s")
        y = named(arith.MulfOp(q, tile.RepeatOp(s, 1, self.block).result), "y_tile")
        tile.StoreOp(cast(y, self.form.element, "y_tile"), self.args["y"], [self.m, k])

    def store_scale(self, scale: SSAValue) -> None:
        count = self.columns // self.block
        if not self.swizzled:
            group = self.times(self.pid_k, count, "g")
            tile.StoreOp(scale, self.args["scale"], [self.m, group])
            return
        wide = count // ATOM_COLUMNS
        quarters = tile.ReshapeOp(scale, (4, 32, wide, ATOM_COLUMNS)).result
        atoms = tile.PermuteOp(quarters, (2, 1, 0, 3)).result
        atoms = named(tile.ReshapeOp(atoms, (wide, 2, 256)), "atoms")
        column, zero = self.times(self.pid_k, wide, "k_atom"), self.constant(0)
        tile.StoreOp(atoms, self.args["scale"], [self.pid_m, column, zero, zero])

    def store_codes(self, codes: SSAValue) -> None:
        if self.stored is not self.type.format:
            codes = named(tile.CastOp(codes, element_named(self.stored.name)), "codes")
        packed = named(tile.BitcastOp(codes, i8), "packed")
        column = self.times(self.pid_k, self.bytes_of(self.columns), "byte")
        tile.StoreOp(packed, self.args["codes"], [self.m, column])

    def load(self, name: str, k: SSAValue) -> SSAValue:
        element = tile.element_of(self.args[name])
        type_ = VectorType(element, (self.rows, self.step))
        return named(tile.LoadOp(self.args[name], [self.m, k], type_), f"{name}_tile")
