"""Functions of f32 lanes that no CPU has an instruction for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import Tile, Vectors

LEAST, GREATEST = -104.0, 104.0
"""Arguments beyond which exp is 0 or infinity in f32."""

WHOLE = 1.5 * 2**23
"""What rounds to whole numbers when it is added: they end up in its low bits."""

LN2 = 0.693359375, math.log(2) - 0.693359375
"""log 2 in two parts, of which the first times a whole number is exact."""

SERIES = [1 / math.factorial(n) for n in range(7, 1, -1)]
"""exp r = 1 + r + r²/2 + …, to less than 2^-26 of it for |r| ≤ log(2)/2."""


def divide(e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
    return e.emit(llvm.FDivOp(a, b))


def rsqrt(e: Emitter, x: SSAValue) -> SSAValue:
    root = e.intrinsic(f"llvm.sqrt.v{e.isa.lanes}f32", [x], x.type)
    return divide(e, e.full(1.0), root)


def exp(e: Emitter, x: SSAValue) -> SSAValue:
    """2^n · exp(r), n whole; within an ulp or so, infinity, 0 and NaN where they are due."""
    for name, bound in (("minimum", GREATEST), ("maximum", LEAST)):
        x = e.intrinsic(f"llvm.{name}.v{e.isa.lanes}f32", [x, e.full(bound)], x.type)
    magic = e.full(WHOLE)
    shifted = e.fma(x, e.full(1 / math.log(2)), magic)
    whole = e.emit(llvm.FSubOp(shifted, magic))
    r = x
    for part in LN2:
        r = e.fma(whole, e.full(-part), r)
    sum_ = e.full(SERIES[0])
    for factor in (*SERIES[1:], 1.0, 1.0):
        sum_ = e.fma(sum_, r, e.full(factor))
    n = e.emit(llvm.SubOp(e.bitcast(shifted, e.vector(i32)), e.bitcast(magic, e.vector(i32))))
    half = e.emit(llvm.AShrOp(n, e.bits(1)))  # 2^n itself may be out of range
    for power in (half, e.emit(llvm.SubOp(n, half))):
        sum_ = e.fmul(sum_, power_of_two(e, power))
    return sum_


def power_of_two(e: Emitter, exponent: SSAValue) -> SSAValue:
    """2^n of i32 lanes n, normal numbers of f32."""
    biased = e.emit(llvm.AddOp(exponent, e.bits(127)))
    return e.bitcast(e.shift(biased, -23), e.full(0.0).type)


@dataclass(frozen=True, eq=False)
class Mapped(Tile):
    """A function of each element of an f32 tile."""

    function: Callable[[Emitter, SSAValue], SSAValue]
    source: Tile

    @property
    def granule(self) -> int:
        return self.source.granule

    def row(self, e: Emitter, i: Index) -> Vectors:
        return [self.function(e, v) for v in self.source.row(e, i)]

    def splat(self, e: Emitter, i: Index, j: Index) -> SSAValue:
        return self.function(e, self.source.splat(e, i, j))
