"""Build the tile kernels that multiply 8-bit activations by integer weights in dots of bytes.

A step is one group of K: its dot is exact in i32, then both scales of the group are applied in f32.
Words hold unsigned codes (`gqc.formats.layouts`), and what is missing of signed ones is a multiple
of the sum of x, with which the dot starts.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects import arith
from xdsl.dialects.builtin import DYNAMIC_INDEX, MemRefType, VectorType, f32, i8, i32
from xdsl.ir import SSAValue

from gqc.dialects import gq, tile
from gqc.passes.kernel_builder import cast, named
from gqc.passes.matmul_kernel import MatmulKernel, full, spread


@dataclass
class Int8MatmulKernel(MatmulKernel):
    """Builds the kernel of one matmul for one schedule.

    Arguments of the kernel: x codes i8 [M, K], `x_scale` f32 [M, K/B], `x_sum` i32 [M, K/B], the
    parts of the weight, bias [N], y [M, N].
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        x = gq.block_scaled(self.matmul.x)
        assert x is not None
        self.x_element, self.activation = x.element, i8

    def arguments(self) -> dict[str, MemRefType]:
        """Names and types of the kernel's arrays, in order."""
        rest = super().arguments()
        x, shape = {"x": rest.pop("x")}, (DYNAMIC_INDEX, self.k // self.block)
        return {**x, "x_scale": MemRefType(f32, shape), "x_sum": MemRefType(i32, shape), **rest}

    def step(self, k: SSAValue, acc: SSAValue) -> SSAValue:
        """The accumulator after one more group."""
        return self.add_group(acc, k, self.load_codes(k))

    def add_group(self, acc: SSAValue, k: SSAValue, codes: SSAValue) -> SSAValue:
        """acc, and the products of the group at k."""
        x = self.load_rows("x", k, self.bk)
        x = named(tile.BitcastOp(x, self.x_element), "x_codes")
        g = named(arith.DivUIOp(k, self.constant(self.block)), "g")
        x_scale, x_sum = self.load_rows("x_scale", g, 1), self.load_rows("x_sum", g, 1)
        scale, zero = self.load_scale(g), self.load_zero(g)
        part = named(tile.DotOp(self.start(x_sum), x, codes), "part")
        shape = self.bm, self.bn
        factor = arith.MulfOp(spread(x_scale, shape), spread(scale, shape)).result
        scaled = arith.MulfOp(cast(part, f32, "part"), factor).result
        acc = named(arith.AddfOp(acc, scaled), "acc")
        if zero is None:
            return acc
        total = named(arith.MulfOp(x_scale, cast(x_sum, f32, "x_sum")), "x_total")
        offset = self.offset_of(scale, zero)
        return named(
            arith.AddfOp(acc, arith.MulfOp(spread(total, shape), spread(offset, shape)).result),
            "acc",
        )

    def start(self, x_sum: SSAValue) -> SSAValue:
        """What the dot of unsigned codes starts with: the least code, times the sum of x."""
        least, shape = self.layout.least(self.type), (self.bm, self.bn)
        if least == 0:
            return named(tile.FullOp(0, VectorType(i32, shape)), "start")
        factor = tile.FullOp(least, VectorType(i32, (self.bm, 1))).result
        return spread(named(arith.MuliOp(x_sum, factor), "start"), shape)

    def offset_of(self, scale: SSAValue, zero: SSAValue) -> SSAValue:
        """What zero points add to a weight: z, or −s·z."""
        if not self.type.mode.shifts_codes:
            return zero
        minus = arith.MulfOp(scale, full(-1.0, zero)).result
        return named(arith.MulfOp(minus, zero), "offset")
