"""Build the tile kernels that quantize activations.

A kernel reads x [M, K], or what x is computed from (`gq.fused`), quantizes blocks along K, and
writes what a matmul reads: values decoded again (`Decoded`), for one that multiplies floats, or
scales and codes (`Packed`), for one whose matrix unit takes them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
    i32,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.dialects import gq, tile
from gqc.dialects.fx import CallOp
from gqc.formats.byte_layouts import SCALE_PLACES, ScalePlace, stored_element
from gqc.formats.elements import ELEMENTS
from gqc.passes.kernel_builder import KernelBuilder, building, cast, element_named, named
from gqc.passes.producer_tiles import ProducerTiles
from gqc.passes.producers import COPIES
from gqc.targets import resolve


@dataclass(frozen=True)
class Decoded:
    """y [M, K] = code · scale as floats; the scale of the tensor is left to the matmul.

    bf16 and f32 hold every product exactly but for subnormals of theirs. (f16 does not: a scale may
    be rounded up beyond 65504.)
    """

    element: Attribute

    def __str__(self) -> str:
        return f"decoded_{self.element}"


@dataclass(frozen=True)
class Packed:
    """scale, then codes as bytes i8 [M, K · bits / 8], the even ones of 4 bits low.

    These are the parts of the layout `bytes`, scales at the place that `SCALE_PLACES` calls
    `scales`; if that has sums, they come first: of each block's codes, i32 [M, K/B]. In tiles,
    blocks beyond the end of a row have the scale of zeros. (Rows beyond the end have it too, unless
    the kernel makes single rows.)
    """

    scales: str

    def __str__(self) -> str:
        return f"packed_{self.scales}"

    @property
    def place(self) -> ScalePlace:
        return SCALE_PLACES[self.scales]


@dataclass(frozen=True)
class QuantizeTiling:
    """What one program makes: `rows`×`columns` elements, `step` columns at a time (0: all of K)."""

    rows: int
    columns: int
    step: int
    warps: int = 1


TILINGS = {"cpu": QuantizeTiling(1, 0, 128), "triton": QuantizeTiling(32, 128, 128, 4)}
"""By backend. A CPU's threads share rows; on a GPU a thread takes 32 elements."""

FUSED = {"cpu": QuantizeTiling(1, 0, 128), "triton": QuantizeTiling(1, 0, 4096, 4)}
"""Where the kernel computes the activation too, which may want sums of whole rows."""

SUM_STEP = {"cpu": 64, "triton": 4096}
"""Columns that a row is summed by: on a CPU what registers hold."""

PER_WARP = 1024
"""Elements of a tile, of which a thread takes 32."""


def build_quantize(
    name: str,
    target: str,
    x_type: TensorType,
    type_: gq.BlockScaledType,
    rule: str,
    form: Decoded | Packed,
    fused: gq.FusedOp | None = None,
) -> tile.KernelOp:
    """The kernel that quantizes x of `x_type` [M, K] to `type_`, blocks of 1×B, by a scale rule.

    Arguments of the kernel: x, or the inputs of what computes it, `x_tensor_scale` f32 [1] if the
    type has one, then y [M, K] or scale and codes, as the form says.
    """
    return QuantizeKernel(name, target, x_type, type_, rule, form, fused).build()


@dataclass
class QuantizeKernel(KernelBuilder):
    """Builds one kernel."""

    name: str
    target: str
    x_type: TensorType
    type: gq.BlockScaledType
    rule: str
    form: Decoded | Packed
    fused: gq.FusedOp | None = None

    def __post_init__(self) -> None:
        shape = self.x_type.get_shape()
        self.k, self.block = shape[-1], self.type.block_of(shape)[-1]
        self.packed = isinstance(self.form, Packed)
        self.stored = ELEMENTS[stored_element(self.type.format.name)]
        self.place = self.form.place if isinstance(self.form, Packed) else ScalePlace()
        self.backend = resolve(self.target).backend
        tiling = (TILINGS if self.fused is None else FUSED)[self.backend]
        if self.fused is not None:
            tiling = replace(tiling, step=min(tiling.step, power_of_two(self.k)))
        elif self.place.digits:
            tiling = self.whole_tiles()
        self.rows, self.warps = tiling.rows, tiling.warps
        self.step = max(tiling.step, self.block * self.place.tile[1])
        if self.place.sums:
            self.step = self.block
        self.columns = max(tiling.columns, self.block) if tiling.columns else self.k

    def whole_tiles(self) -> QuantizeTiling:
        """Programs that fill whole tiles of scales, of 128 columns at least."""
        rows, blocks = self.place.tile
        columns = max(blocks * self.block, 128)
        return QuantizeTiling(rows, columns, columns, rows * columns // PER_WARP)

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        types = self.inputs()
        if self.type.has_tensor_scale:
            types["x_tensor_scale"] = MemRefType(f32, (1,))
        if isinstance(self.form, Decoded):
            return {**types, "y": MemRefType(self.form.element, (DYNAMIC_INDEX, self.k))}
        layout = gq.LayoutAttr("bytes", scales=self.form.scales)
        codes, scale, *_ = layout.part_types(TensorType(self.type, self.x_type.get_shape()))
        if self.place.sums:
            types["sum"] = MemRefType(i32, (DYNAMIC_INDEX, scale.get_shape()[1]))
        # Single rows have scales in all places of a tile: digit by digit.
        tile = self.place.digits if self.rows == 1 else self.place.stored
        shape = (DYNAMIC_INDEX, scale.get_shape()[1], *tile)
        types["scale"] = MemRefType(self.type.scale, shape)
        return {**types, "codes": MemRefType(i8, (DYNAMIC_INDEX, codes.get_shape()[-1]))}

    def inputs(self) -> dict[str, MemRefType]:
        """Names and types of x, or of what it is computed from: x0, x1, … and vectors w0, w1, …"""
        if self.fused is None:
            return {"x": MemRefType(self.x_type.get_element_type(), (DYNAMIC_INDEX, self.k))}
        types: dict[str, MemRefType] = {}
        for value in self.fused.inputs:
            vector = len(gq.tensor_shape(value)) == 1
            name = f"{'w' if vector else 'x'}{sum(n[0] == ('w' if vector else 'x') for n in types)}"
            shape = (self.k,) if vector else (DYNAMIC_INDEX, self.k)
            types[name] = MemRefType(gq.element_type(value), shape)
        return types

    def bytes_of(self, columns: int) -> int:
        """Bytes that so many codes of a row take."""
        return columns * self.stored.bits // 8

    def build(self) -> tile.KernelOp:
        self.fill()
        sums = "sum, " if self.place.sums else ""
        what = f"{sums}scale, codes" if self.packed else "y"
        source = "x" if self.fused is None else spelled(self.fused)
        summary = (
            f"{what} = {source} in blocks of {self.block}, "
            f"{self.type.element} under {self.type.scale}"
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
        if self.fused is not None:
            arrays = [self.args[name] for name in self.inputs()]
            step = min(SUM_STEP[self.backend], power_of_two(self.k))
            self.producer = ProducerTiles(self, self.fused, arrays, self.m, self.rows, step)
            self.producer.compute_rows(self.k)
        elif self.columns < self.k or (self.packed and self.columns <= self.step):
            self.quantize(self.times(named(tile.ProgramIdOp(1), "pid_k"), self.columns, "k"))
            return
        loop = Block(arg_types=[IndexType()])
        loop.args[0].name_hint = "k"
        with building(loop):
            self.quantize(loop.args[0])
            scf.YieldOp()
        scf.ForOp(self.constant(0), self.constant(self.k), self.constant(self.step), [], loop)

    def times(self, value: SSAValue, factor: int, name: str) -> SSAValue:
        return value if factor == 1 else named(arith.MuliOp(value, self.constant(factor)), name)

    def quantize(self, k: SSAValue) -> None:
        """Quantize and write `step` columns from k on."""
        if self.fused is None:
            x = cast(self.load("x", k), f32, "x_tile")
        else:
            x = self.producer.at(k, self.step).result()
        op = tile.QcastOp(
            x, self.tensor_scale, self.rule, self.type.element, self.type.scale, self.block
        )
        op.codes.name_hint, op.scale.name_hint = "codes", "scale"
        if self.packed:
            if self.place.sums:
                self.store_sum(op.codes, k)
            self.store_scale(op.scale, k)
            self.store_codes(op.codes, k)
        else:
            self.store_values(op, k)

    def store_values(self, op: tile.QcastOp, k: SSAValue) -> None:
        assert isinstance(self.form, Decoded)
        q, s = cast(op.codes, f32, "q"), cast(op.scale, f32, "s")
        y = named(arith.MulfOp(q, tile.RepeatOp(s, 1, self.block).result), "y_tile")
        tile.StoreOp(cast(y, self.form.element, "y_tile"), self.args["y"], [self.m, k])

    def store_sum(self, codes: SSAValue, k: SSAValue) -> None:
        """Write the sum of the codes of one block."""
        total = named(tile.SumOp(codes, 1), "sum")
        tile.StoreOp(total, self.args["sum"], [self.m, self.units(k, self.block, "g")])

    def store_scale(self, scale: SSAValue, k: SSAValue) -> None:
        """Write scales [rows, step/B] at their places."""
        place, (height, width) = self.place, self.place.tile
        column = self.units(k, self.block * width, "k_tile" if place.digits else "g")
        wide = self.step // self.block // width
        if not place.digits:
            at = [self.m, column]
        elif self.rows == 1:
            ones = replace(place, rows=(1,) * len(place.rows))
            scale, at = self.tiled(scale, ones, 1, wide, ones.digits), self.place_of_row(column)
        else:
            high = self.rows // height
            scale = self.tiled(scale, place, high, wide, place.stored)
            at = [self.times(self.pid_m, high, "tile"), column]
            at += [self.constant(0)] * len(place.stored)
        tile.StoreOp(scale, self.args["scale"], at)

    def tiled(
        self, scale: SSAValue, place: ScalePlace, high: int, wide: int, form: tuple[int, ...]
    ) -> SSAValue:
        """Scales as tiles [high, wide, *form]."""
        split = tile.ReshapeOp(scale, place.split(high, wide)).result
        digits = tile.PermuteOp(split, place.there).result
        if form == place.digits:
            return named(digits.owner, "tiles")
        return named(tile.ReshapeOp(digits, (high, wide, *form)), "tiles")

    def place_of_row(self, column: SSAValue) -> list[SSAValue]:
        """Where an array [tiles, tiles, *digits] has the scales of row m from a column of tiles."""
        place, zero = self.place, self.constant(0)
        digits, unit = [], place.tile[0]
        high = self.units(self.m, unit, "high")
        for extent in place.rows:
            unit //= extent
            digit = arith.RemUIOp(self.units(self.m, unit, "m"), self.constant(extent))
            digits.append(named(digit, "digit"))
        natural = [*digits, *[zero] * len(place.columns)]
        return [high, column, *[natural[i] for i in place.order]]

    def store_codes(self, codes: SSAValue, k: SSAValue) -> None:
        if self.stored is not self.type.format:
            codes = named(tile.CastOp(codes, element_named(self.stored.name)), "codes")
        packed = named(tile.BitcastOp(codes, i8), "packed")
        column = self.units(k, 8 // self.stored.bits, "k_byte")
        tile.StoreOp(packed, self.args["codes"], [self.m, column])

    def load(self, name: str, k: SSAValue) -> SSAValue:
        element = tile.element_of(self.args[name])
        type_ = VectorType(element, (self.rows, self.step))
        return named(tile.LoadOp(self.args[name], [self.m, k], type_), f"{name}_tile")


def power_of_two(extent: int) -> int:
    """The least one that is no less."""
    return 1 << (extent - 1).bit_length()


def spelled(fused: gq.FusedOp) -> str:
    """The functions that a body calls, in order: `silu, mul`."""
    calls = [op.callee.data for op in fused.body.block.ops if isinstance(op, CallOp)]
    return ", ".join(c.split(".")[1] for c in calls if c not in COPIES)
