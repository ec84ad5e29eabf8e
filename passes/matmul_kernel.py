"""Build the tile kernels that multiply floats by packed weights, decoded in registers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

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
    i32,
    i64,
)
from xdsl.ir import Attribute, Block, Region, SSAValue

from gqc.dialects import gq, tile
from gqc.formats.layouts import LAYOUTS, Part
from gqc.formats.packing import Plane
from gqc.passes.kernel_builder import KernelBuilder, building, cast, element_named, named
from gqc.passes.order_of_k import DETERMINISTIC
from gqc.targets import resolve

SUMMED = {"before": 128, "after": 512}
"""K that is summed up by itself where x is f32, by the place of the scale: in one sum of thousands
of columns, what is lost to rounding is that of large numbers each time."""

TENSOR_SCALES = ("x_tensor_scale", "tensor_scale")
"""Arguments that scale all of x, and all of the weight."""


@dataclass(frozen=True)
class Floats:
    """A tile of floats on which + − · build ops: an operand of `ZeroMode.dequantize`."""

    value: SSAValue

    def __add__(self, other: Floats) -> Floats:
        return Floats(arith.AddfOp(self.value, other.value).result)

    def __sub__(self, other: Floats) -> Floats:
        return Floats(arith.SubfOp(self.value, other.value).result)

    def __mul__(self, other: Floats) -> Floats:
        return Floats(arith.MulfOp(self.value, other.value).result)


def spread(value: SSAValue, shape: tuple[int, ...]) -> SSAValue:
    """Broadcast, unless the value has the shape already."""
    return value if tile.shape_of(value) == shape else tile.BroadcastOp(value, shape).result


def full(number: float, like: SSAValue) -> SSAValue:
    """A number in every place of a tile like another."""
    assert isinstance(like.type, VectorType)
    return tile.FullOp(number, like.type).result


@dataclass
class MatmulKernel(KernelBuilder):
    """Builds the kernel of one matmul for one schedule."""

    name: str
    target: str
    matmul: gq.MatmulTOp
    unpack: gq.UnpackOp
    schedule: gq.ScheduleAttr

    def __post_init__(self) -> None:
        type_ = gq.block_scaled(self.unpack.weight)
        assert type_ is not None
        self.type = type_
        self.n, self.k = gq.tensor_shape(self.unpack.weight)
        self.block = type_.block_of((self.n, self.k))[1]
        self.bm, self.bn, self.bk = self.schedule.sizes
        self.lanes = self.unpack.layout.lanes.data
        self.layout = layout = LAYOUTS[self.unpack.layout.kind.data]
        self.k_axis = layout.k_axis
        self.activation = gq.element_type(self.matmul.x)
        self.scale_first = self.schedule.scale.data == "before"
        rounds = self.scale_first or not self.type.codes_are_exact_in(str(self.activation))
        self.dot_type = f32 if layout.exact_dot and rounds else self.activation

    # Arguments

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        names = map(argument_name, self.layout.parts(self.type))
        arrays = dict(zip(names, (p.type for p in self.unpack.parts), strict=True))
        if self.matmul.bias is not None:
            arrays["bias"] = self.matmul.bias.type
        types = {"x": MemRefType(self.activation, (DYNAMIC_INDEX, self.k))}
        if x_scales(self.matmul):
            types["x_tensor_scale"] = MemRefType(f32, (1,))
        for name, type_ in arrays.items():
            assert isinstance(type_, TensorType)
            types[name] = MemRefType(type_.get_element_type(), type_.get_shape())
        y = gq.element_type(self.matmul.result)
        return {**types, "y": MemRefType(y, (DYNAMIC_INDEX, self.n))}

    def build(self) -> tile.KernelOp:
        self.fill()
        bias = " + bias" if "bias" in self.args else ""
        factor = "".join(f" * {name}" for name in TENSOR_SCALES if name in self.args)
        summary = f"y = x @ W.T{factor}{bias}, with W = {self.type.mode.text}"
        attributes: dict[str, Attribute] = {
            "summary": StringAttr(summary),
            "target": StringAttr(self.target),
            "num_warps": IntegerAttr(self.schedule.warps.data, i64),
            "num_stages": IntegerAttr(self.schedule.stages.data, i64),
        }
        if DETERMINISTIC in self.matmul.attributes and (side := resolve(self.target).nonkdim):
            attributes["matrix_instr_nonkdim"] = IntegerAttr(side, i64)
        return tile.KernelOp(self.name, self.program_tile, Region(self.entry), attributes)

    @property
    def program_tile(self) -> tuple[int, int]:
        """Rows and columns of y that one program makes."""
        return self.bm, self.bn

    # Body

    def body(self) -> None:
        self.m = self.offset(0, self.bm, "m")
        self.column = self.offset(1, self.bn, "n")
        if not self.k_axis:
            self.find_lane()
        shape = (self.bn, self.bm) if self.k_axis else (self.bm, self.bn)
        start = named(tile.FullOp(0.0, VectorType(f32, shape)), "acc")
        if self.block == self.k:  # one scale a row: loaded once
            self.load_block(self.constant(0))
        parts = self.schedule.parts.data
        extent = self.k // parts
        first = self.offset(2, extent, "part") if parts > 1 else None
        total = self.sum_of(first, extent, start)
        if parts > 1:
            total = named(tile.AddPartsOp(total, parts), "acc")
        self.epilogue(total)

    def sum_of(self, first: SSAValue | None, extent: int, start: SSAValue) -> SSAValue:
        """What so many columns of K give, from one on, as a sum of sums where x is f32."""

        def at(k: SSAValue, first: SSAValue | None) -> SSAValue:
            return k if first is None else named(arith.AddiOp(first, k), "k")

        def steps(first: SSAValue | None, extent: int) -> SSAValue:
            return self.accumulate(
                extent, self.bk, start, lambda k, acc: self.step(at(k, first), acc)
            )

        part = self.summed(extent)
        if part == extent:
            return steps(first, extent)
        return self.accumulate(
            extent, part, start, lambda k, acc: arith.AddfOp(acc, steps(at(k, first), part)).result
        )

    def summed(self, extent: int) -> int:
        """K that is summed up by itself where x is f32: the most steps that are equal parts."""
        if self.activation != f32:
            return extent
        counts = range(1, SUMMED[self.schedule.scale.data] // self.bk + 1)
        return max((n * self.bk for n in counts if extent % (n * self.bk) == 0), default=extent)

    def accumulate(
        self,
        extent: int,
        step: int,
        start: SSAValue,
        add: Callable[[SSAValue, SSAValue], SSAValue],
    ) -> SSAValue:
        """A loop over K that makes the accumulator of `add`, given where it is and what it was."""
        loop = Block(arg_types=[IndexType(), start.type])
        k, acc = loop.args
        k.name_hint, acc.name_hint = "k", "acc"
        with building(loop):
            scf.YieldOp(add(k, acc))
        ends = self.constant(0), self.constant(extent), self.constant(step)
        return named(scf.ForOp(*ends, [start], loop), "acc")

    def offset(self, axis: int, size: int, name: str) -> SSAValue:
        """Where this program's tile begins along an axis of the output."""
        program = named(tile.ProgramIdOp(axis), f"pid_{name}")
        return named(arith.MuliOp(program, self.constant(size)), name)

    def find_lane(self) -> None:
        """The panel of rows where the tile's columns are, and the lane of it where they begin."""
        lanes = self.constant(self.lanes)
        self.panel = named(arith.DivUIOp(self.column, lanes), "panel")
        self.lane = named(arith.RemUIOp(self.column, lanes), "lane")

    def step(self, k: SSAValue, acc: SSAValue) -> SSAValue:
        """The accumulator after BK more of K."""
        x = self.load_rows("x", k, self.bk)
        codes = self.load_codes(k)
        if self.block != self.k:
            self.load_block(k)
        weight = self.weight_tile(codes)
        x_tile = cast(x, self.dot_type, "x_tile")
        if self.scale_first:
            return self.dot(acc, x_tile, weight)
        start = full(0.0, acc)
        part = named_value(self.dot(start, x_tile, weight), "part")
        total = named(tile.SumOp(x, 1), "x_sum") if self.zero is not None else None
        return self.scale_sum(acc, part, total)

    def weight_tile(self, codes: SSAValue) -> SSAValue:
        """What is multiplied by x: the values of codes, scaled if the scale comes first."""
        values = self.dequantize(codes) if self.scale_first else codes
        weight = cast(values, self.dot_type, "w_tile")
        if not self.middle:
            return weight
        return named(arith.SubfOp(weight, full(self.middle, weight)), "w_tile")

    @property
    def middle(self) -> float:
        """What is taken from unsigned codes where x is f32 and a zero point comes after the dot:
        else their sums are large, and the zero point takes most of them away again."""
        comes_after = self.type.has_zero and not self.scale_first
        return self.type.format.middle if comes_after and self.activation == f32 else 0.0

    def dot(self, acc: SSAValue, x: SSAValue, weight: SSAValue) -> SSAValue:
        if self.k_axis:
            return named(tile.DotOp(acc, weight, tile.TransposeOp(x).result), "acc")
        return named(tile.DotOp(acc, x, weight), "acc")

    # Scales and zero points

    def dequantize(self, codes: SSAValue) -> SSAValue:
        """The weight tile in f32, from codes, scales and zero points, by zero mode."""
        q, s = Floats(cast(codes, f32, "q")), Floats(self.repeat(self.scale))
        z = Floats(self.repeat(self.zero)) if self.zero is not None else None
        return named_value(self.type.mode.dequantize(q, s, z).value, "w_tile")

    def scale_sum(self, acc: SSAValue, part: SSAValue, total: SSAValue | None) -> SSAValue:
        """acc + s·part + c·Σx, where c is z (rescale) or −s·z: the block's scale after its dot.

        total: Σx of each row [BM, 1], needed where there are zero points."""
        shape = tile.shape_of(acc)
        acc = arith.AddfOp(acc, arith.MulfOp(part, spread(self.scale, shape))).result
        if self.zero is None or total is None:
            return acc
        if self.k_axis:
            total = tile.TransposeOp(total).result
        total = spread(named_value(total, "x_sum"), shape)
        if not self.type.mode.shifts_codes:
            return arith.AddfOp(acc, arith.MulfOp(total, spread(self.zero, shape))).result
        offset = named(arith.MulfOp(self.scale, self.zero), "offset")
        return arith.SubfOp(acc, arith.MulfOp(total, spread(offset, shape))).result

    def repeat(self, value: SSAValue) -> SSAValue:
        """A scale or zero point for each block of the step, spread over the weight tile."""
        times = self.bk // tile.shape_of(value)[self.k_axis]
        return tile.RepeatOp(value, self.k_axis, times).result if times > 1 else value

    # Loads

    def load_rows(self, name: str, column: SSAValue, columns: int) -> SSAValue:
        """Columns of an array [M, …] from one on, of this tile's rows."""
        type_ = VectorType(tile.element_of(self.args[name]), (self.bm, columns))
        return named(tile.LoadOp(self.args[name], [self.m, column], type_), f"{name}_tile")

    def load_block(self, k: SSAValue) -> None:
        """The scale and zero point at k, for what comes."""
        whole_row = self.block == self.k
        g = self.constant(0) if whole_row else self.units(k, self.block, "g")
        self.scale, self.zero = self.load_scale(g), self.load_zero(g)
        if self.zero is not None and self.middle:
            self.zero = named_value(self.of_middle(self.zero), "zero")

    def of_middle(self, zero: SSAValue) -> SSAValue:
        """The zero point of codes less the middle."""
        if self.type.mode.shifts_codes:
            return arith.SubfOp(zero, full(self.middle, zero)).result
        return arith.AddfOp(zero, arith.MulfOp(self.scale, full(self.middle, zero))).result

    def load_codes(self, k: SSAValue) -> SSAValue:
        planes = []
        for name, plane in self.planes("codes"):
            word = self.units(k, len(plane.codes), "word")
            if plane.words > 1:
                word = named(arith.MuliOp(word, self.constant(plane.words)), "word")
            words = plane.words_of(self.bk)
            shape = (self.bn, words) if self.k_axis else (words, self.bn)
            load = tile.LoadOp(self.args[name], self.place(word), VectorType(i32, shape))
            planes.append(named(load, f"{name}_words"))
        shape = (self.bn, self.bk) if self.k_axis else (self.bk, self.bn)
        type_ = VectorType(element_named(self.layout.stored(self.type)), shape)
        return named(tile.UnpackOp(planes, self.k_axis, type_, self.layout.order), "codes")

    def planes(self, kind: str) -> list[tuple[str, Plane]]:
        """Argument of each plane of words of a kind of part."""
        parts = self.layout.parts(self.type)
        return [(argument_name(p), p.plane) for p in parts if p.kind == kind and p.plane]

    def place(self, column: SSAValue) -> list[SSAValue]:
        """Offsets of this program's weight words that begin at a column (of words)."""
        return [self.column, column] if self.k_axis else self.lane_place(column, 1)

    def lane_place(self, column: SSAValue, codes_per_word: int) -> list[SSAValue]:
        """The same where rows are lanes; words of zero points hold several lanes each."""
        lane = self.lane
        if codes_per_word > 1:
            lane = named(arith.DivUIOp(lane, self.constant(codes_per_word)), "lane_word")
        return [self.panel, column, lane]

    @property
    def blocks(self) -> int:
        """Blocks of the format in one step, at least one."""
        return max(1, self.bk // self.block) if self.block != self.k else 1

    def load_scale(self, g: SSAValue) -> SSAValue:
        return self.load_blocks("scale", g, self.type.scale)

    def load_zero(self, g: SSAValue) -> SSAValue | None:
        if not self.type.has_zero:
            return None
        if not self.type.mode.integer:
            return self.load_blocks("zero", g, self.type.zero)
        planes = []
        for name, plane in self.planes("zero"):
            place, shape = self.block_place(g, len(plane.codes)), plane.words_of(self.bn)
            load = tile.LoadOp(self.args[name], place, VectorType(i32, (self.blocks, shape)))
            planes.append(named(load, f"{name}_words"))
        codes = tile.UnpackOp(planes, 1, VectorType(self.type.zero, (self.blocks, self.bn)))
        return self.orient(cast(codes.result, f32, "z"), "z")

    def block_place(self, g: SSAValue, codes_per_word: int) -> list[SSAValue]:
        """Offsets of this program's scales (or words of zero points) of block g."""
        if not self.k_axis:
            return self.lane_place(g, codes_per_word)
        if codes_per_word == 1:
            return [g, self.column]
        return [g, named(arith.DivUIOp(self.column, self.constant(codes_per_word)), "n_word")]

    def load_blocks(self, name: str, g: SSAValue, element: Attribute) -> SSAValue:
        load = tile.LoadOp(
            self.args[name], self.block_place(g, 1), VectorType(element, (self.blocks, self.bn))
        )
        return self.orient(cast(named(load, name[0]), f32, name[0]), name[0])

    def orient(self, value: SSAValue, name: str) -> SSAValue:
        """[blocks, BN] with K along the weight tile's axis of K."""
        return named(tile.TransposeOp(value), name) if self.k_axis else value

    def epilogue(self, acc: SSAValue) -> None:
        """The tensor scale, bias, the output's type, and the store."""
        if self.k_axis:
            acc = named(tile.TransposeOp(acc), "acc")
        shape = tile.shape_of(acc)
        for name in TENSOR_SCALES:
            if name in self.args:
                load = tile.LoadOp(self.args[name], [self.constant(0)], VectorType(f32, (1,)))
                scale = spread(named(load, name), shape)
                acc = named(arith.MulfOp(acc, scale), "acc")
        if "bias" in self.args:
            element = tile.element_of(self.args["bias"])
            bias = named(
                tile.LoadOp(self.args["bias"], [self.column], VectorType(element, (self.bn,))), "b"
            )
            bias = tile.BroadcastOp(cast(bias, f32, "b"), shape)
            acc = named(arith.AddfOp(acc, bias), "acc")
        result = cast(acc, tile.element_of(self.args["y"]), "y_tile")
        tile.StoreOp(result, self.args["y"], [self.m, self.column])


def argument_name(part: Part) -> str:
    """Name of a part as a kernel's argument."""
    return ("w" if part.kind == "codes" else part.kind) + part.suffix


def named_value(value: SSAValue, name: str) -> SSAValue:
    value.name_hint = name
    return value


def x_scales(matmul: gq.MatmulTOp) -> list[SSAValue]:
    """The tensor scale of x, if it has one apart; a weight's is among its parts."""
    return [scale for scale in matmul.alphas if weight_cast(scale) is None]


def weight_cast(value: SSAValue) -> gq.UnpackOp | None:
    """The packed weight that a value is the cast of, or None."""
    cast = value.owner
    source = cast.source.owner if isinstance(cast, gq.DcastOp) else None
    return source if isinstance(source, gq.UnpackOp) else None
