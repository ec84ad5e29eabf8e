"""Build the tile kernels that multiply block-scaled codes as they are stored.

Both operands are read in the layout `bytes` and multiplied by `tile.dot_scaled`, which a GPU has an
instruction for (`gqc.native`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import reduce

from xdsl.dialects import arith, scf
from xdsl.dialects.builtin import (
    DYNAMIC_INDEX,
    IndexType,
    IntegerAttr,
    MemRefType,
    StringAttr,
    VectorType,
    f32,
    i8,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.dialects import gq, tile
from gqc.dialects.tile_scaled import widening_factor
from gqc.formats.byte_layouts import SCALE_PLACES, stored_element
from gqc.formats.elements import ELEMENTS
from gqc.native import Native, native
from gqc.passes.kernel_builder import KernelBuilder, building, cast, element_named, named
from gqc.passes.matmul_kernel import TENSOR_SCALES, spread


def build_scaled_matmul(
    name: str,
    target: str,
    matmul: gq.MatmulTOp,
    x_unpack: gq.UnpackOp,
    w_unpack: gq.UnpackOp,
    schedule: gq.ScheduleAttr,
) -> tile.KernelOp:
    """The kernel of one matmul of unpacked operands for one schedule.

    Arguments of the kernel: x codes i8 [M, K·b/8], `x_scale`, `x_tensor_scale` f32 [1] if the type
    has one, w codes i8 [N, K·b/8], `scale`, `tensor_scale`, bias [N], y [M, N]. Raises KeyError for
    a product that is not in `gqc.native.NATIVE`.
    """
    x = Operand("x", x_unpack)
    w = Operand("w", w_unpack)
    row = native(target, x.type, w.type)
    if row is None:
        raise KeyError(f"{target} multiplies no {x.type.element} by {w.type.element} natively")
    return ScaledMatmulKernel(name, target, matmul, x, w, schedule, row).build()


@dataclass
class Operand:
    """One operand of the product: an argument's name and what is read through it."""

    name: str
    unpack: gq.UnpackOp

    def __post_init__(self) -> None:
        type_ = gq.block_scaled(self.unpack.weight)
        assert type_ is not None
        self.type = type_
        shape = gq.tensor_shape(self.unpack.weight)
        self.k = shape[-1]
        self.block = type_.block_of(shape)[-1]
        stored = stored_element(type_.format.name)
        self.element, self.bits = element_named(stored), ELEMENTS[stored].bits
        self.place = SCALE_PLACES[self.unpack.layout.scales.data]
        self.scale_name = "x_scale" if self.name == "x" else "scale"

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of its arrays, in order."""
        whole = "x_tensor_scale" if self.name == "x" else "tensor_scale"
        types = {}
        for name, part in zip((self.name, self.scale_name, whole), self.unpack.parts, strict=False):
            types[name] = MemRefType(
                gq.element_type(part), self.array_shape(name, gq.tensor_shape(part))
            )
        return types

    def array_shape(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of a part as a kernel's array: an activation has any number of rows."""
        if name == "x":
            return DYNAMIC_INDEX, shape[-1]
        return (DYNAMIC_INDEX, *shape[1:]) if name == "x_scale" else shape


@dataclass
class ScaledMatmulKernel(KernelBuilder):
    """Builds the kernel of one matmul for one schedule."""

    name: str
    target: str
    matmul: gq.MatmulTOp
    x: Operand
    w: Operand
    schedule: gq.ScheduleAttr
    row: Native

    def __post_init__(self) -> None:
        self.bm, self.bn, self.bk = self.schedule.sizes
        self.n = gq.tensor_shape(self.w.unpack.weight)[0]

    # Arguments

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        types = {**self.x.arguments(), **self.w.arguments()}
        if self.matmul.bias is not None:
            types["bias"] = MemRefType(gq.element_type(self.matmul.bias), (self.n,))
        y = gq.element_type(self.matmul.result)
        return {**types, "y": MemRefType(y, (DYNAMIC_INDEX, self.n))}

    def build(self) -> tile.KernelOp:
        self.fill()
        factor = "".join(f" * {name}" for name in TENSOR_SCALES if name in self.args)
        bias = " + bias" if "bias" in self.args else ""
        summary = (
            f"y = x @ W.T{factor}{bias}, with blocks of {self.x.type.element} "
            f"and {self.w.type.element} under {self.w.type.scale} scales"
        )
        attributes: dict[str, Attribute] = {
            "summary": StringAttr(summary),
            "target": StringAttr(self.target),
            "matrix": StringAttr(self.row.matrix),
            "num_warps": IntegerAttr(self.schedule.warps.data, i64),
            "num_stages": IntegerAttr(self.schedule.stages.data, i64),
        }
        if self.row.copies != "pointers":
            attributes["copies"] = StringAttr(self.row.copies)
        if self.row.nonkdim:
            attributes["matrix_instr_nonkdim"] = IntegerAttr(self.row.nonkdim, i64)
        return tile.KernelOp(self.name, (self.bm, self.bn), Region(self.entry), attributes)

    # Body

    def body(self) -> None:
        self.m = self.offset(0, self.bm, "m")
        self.column = self.offset(1, self.bn, "n")
        self.tiles = {
            operand.name: self.units(start, operand.place.tile[0], f"{name}_tile")
            for operand, start, name in ((self.x, self.m, "m"), (self.w, self.column, "n"))
        }
        start = named(tile.FullOp(0.0, VectorType(f32, (self.bm, self.bn))), "acc")
        loop = Block(arg_types=[IndexType(), start.type])
        k, acc = loop.args
        k.name_hint, acc.name_hint = "k", "acc"
        with building(loop):
            scf.YieldOp(self.step(k, acc))
        bounds = self.constant(0), self.constant(self.x.k), self.constant(self.bk)
        self.epilogue(named(scf.ForOp(*bounds, [start], loop), "acc"))

    def offset(self, axis: int, size: int, name: str) -> SSAValue:
        """Where this program's tile begins along an axis of the output."""
        program = named(tile.ProgramIdOp(axis), f"pid_{name}")
        return named(arith.MuliOp(program, self.constant(size)), name)

    def step(self, k: SSAValue, acc: SSAValue) -> SSAValue:
        """The accumulator after BK more of K."""
        self.offsets: dict[int, SSAValue] = {}
        # All four loads come before what is made of them: copies by TMA then share one barrier.
        x, w = (
            self.load_codes(self.x, self.m, self.bm, k),
            self.load_codes(self.w, self.column, self.bn, k),
        )
        x_scale, w_scale = self.load_scale(self.x, self.bm, k), self.load_scale(self.w, self.bn, k)
        x, w = self.codes(self.x, x, self.row.widen_x), self.codes(self.w, w, self.row.widen_w)
        x_scale, w_scale = self.scale(self.x, x_scale), self.scale(self.w, w_scale)
        dot = tile.DotScaledOp(acc, x, x_scale, tile.TransposeOp(w).result, w_scale)
        return named(dot, "acc")

    def share(self, k: SSAValue, divisor: int, name: str) -> SSAValue:
        """k in units of `divisor` elements, once a step."""
        if divisor not in self.offsets:
            self.offsets[divisor] = self.units(k, divisor, name)
        return self.offsets[divisor]

    def load_codes(self, operand: Operand, start: SSAValue, rows: int, k: SSAValue) -> SSAValue:
        """Bytes of a tile of codes [rows, BK]; past the ends of the array they are 0."""
        name, at = operand.name, self.share(k, 8 // operand.bits, "k_byte")
        shape = VectorType(i8, (rows, self.bk * operand.bits // 8))
        return named(tile.LoadOp(self.args[name], [start, at], shape), f"{name}_tile")

    def codes(self, operand: Operand, load: SSAValue, widen: str | None) -> SSAValue:
        """The tile of codes [rows, BK] that was loaded."""
        codes = named(tile.BitcastOp(load, operand.element), f"{operand.name}_codes")
        if widen is None:
            return codes
        return named(tile.WidenOp(codes, element_named(widen)), f"{operand.name}_wide")

    def load_scale(self, operand: Operand, rows: int, k: SSAValue) -> SSAValue:
        """A tile of scales at their places; past the ends of the array they are finite."""
        name, place, blocks = operand.scale_name, operand.place, self.bk // operand.block
        high, wide = rows // place.tile[0], blocks // place.tile[1]
        column = self.share(k, operand.block * place.tile[1], "k_tile" if place.digits else "g")
        at = [self.tiles[operand.name], column, *[self.constant(0)] * len(place.stored)]
        shape = VectorType(operand.type.scale, (high, wide, *place.stored))
        return named(tile.LoadOp(self.args[name], at, shape), name)

    def scale(self, operand: Operand, load: SSAValue) -> SSAValue:
        """The tile of scales [rows, BK/B] that was loaded."""
        place = operand.place
        if not place.digits:
            return load
        high, wide, *_ = tile.shape_of(load)
        digits = tile.ReshapeOp(load, (high, wide, *place.digits)).result
        ordered = tile.PermuteOp(digits, place.back).result
        shape = high * place.tile[0], wide * place.tile[1]
        return named(tile.ReshapeOp(ordered, shape), operand.scale_name)

    # Epilogue

    def epilogue(self, acc: SSAValue) -> None:
        """Powers of two that widening took, tensor scales, bias, the output's type, the store."""
        shape = (self.bm, self.bn)
        if self.factor != 1:
            factor = tile.FullOp(self.factor, VectorType(f32, shape)).result
            acc = named(arith.MulfOp(acc, factor), "acc")
        wholes = [self.tensor_scale(name) for name in TENSOR_SCALES if name in self.args]
        if wholes:
            # Multiplied first: two passes over acc would hold it twice in registers. The product
            # underflows only where all of y is below 2**-100 · K.
            whole = reduce(lambda a, b: named(arith.MulfOp(a, b), "tensor_scales"), wholes)
            acc = named(arith.MulfOp(acc, spread(whole, shape)), "acc")
        if "bias" in self.args:
            element = tile.element_of(self.args["bias"])
            bias = named(
                tile.LoadOp(self.args["bias"], [self.column], VectorType(element, (self.bn,))), "b"
            )
            bias = spread(cast(bias, f32, "b"), shape)
            acc = named(arith.AddfOp(acc, bias), "acc")
        result = cast(acc, tile.element_of(self.args["y"]), "y_tile")
        tile.StoreOp(result, self.args["y"], [self.m, self.column])

    def tensor_scale(self, name: str) -> SSAValue:
        """The scale of all of an operand, f32 [1]."""
        return named(tile.LoadOp(self.args[name], [self.constant(0)], VectorType(f32, (1,))), name)

    @property
    def factor(self) -> float:
        """What undoes the powers of two by which widening multiplied the operands."""
        pairs = ((self.x, self.row.widen_x), (self.w, self.row.widen_w))
        return math.prod(
            1 / widening_factor(operand.type.format, ELEMENTS[wide])
            for operand, wide in pairs
            if wide is not None
        )
