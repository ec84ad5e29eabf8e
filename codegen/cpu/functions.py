"""Functions of f32 lanes that no CPU has an instruction for."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from xdsl.dialects import llvm
from xdsl.dialects.builtin import i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import Summed, Tile, Vectors

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
    x = maximum(e, minimum(e, x, e.full(GREATEST)), e.full(LEAST))
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


ERF = (
    *(1.1283791658815028, -0.3761262690357993, 0.11283597463485062, -0.02685432879600034),
    *(0.0051893119426240026, -0.0008018854992620572, 7.882497110500978e-05),
)
"""erf x / x as a polynomial of x², to 2^-29 for |x| ≤ 1: interpolated at Chebyshev's points."""

LOG_ERFC = (
    *(-0.0003032129720832444, 1.1301666755178723, 0.6319370936515016, 0.10997824514392926),
    *(-0.026364717372598427, 0.004740222345159228, -0.000592769538603794),
    *(4.559062254046692e-05, -1.6140616079807956e-06),
)
"""-log(1 - erf x) as a polynomial of x, to 2^-26 for 1 ≤ x ≤ 4, in the same way; erf 4 is 1."""

TANH = (
    *(0.9999999961636121, -0.333332616418069, 0.1333115016140752, -0.05372267934294277),
    *(0.020595679957828763, -0.0056647753538939145),
)
"""tanh x / x as a polynomial of x², to 2^-27 for |x| ≤ 5/8, in the same way."""


def polynomial(e: Emitter, x: SSAValue, coefficients: Sequence[float]) -> SSAValue:
    """c₀ + c₁x + c₂x² + …"""
    *rest, last = coefficients
    sum_ = e.full(last)
    for factor in reversed(rest):
        sum_ = e.fma(sum_, x, e.full(factor))
    return sum_


def erf(e: Emitter, x: SSAValue) -> SSAValue:
    """Within two ulps: x times a polynomial, or 1 − exp of one."""
    near = e.fmul(x, polynomial(e, e.fmul(x, x), ERF))
    size = minimum(e, magnitude(e, x), e.full(4.0))
    rest = exp(e, e.fsub(e.full(0.0), polynomial(e, size, LOG_ERFC)))
    return near_or_far(e, x, 1.0, near, e.fsub(e.full(1.0), rest))


def tanh(e: Emitter, x: SSAValue) -> SSAValue:
    """Within two ulps: x times a polynomial, or 1 − 2 / (exp 2x + 1)."""
    near = e.fmul(x, polynomial(e, e.fmul(x, x), TANH))
    size = magnitude(e, x)
    power = exp(e, e.fadd(size, size))
    rest = divide(e, e.full(2.0), e.fadd(power, e.full(1.0)))
    return near_or_far(e, x, 0.625, near, e.fsub(e.full(1.0), rest))


def near_or_far(e: Emitter, x: SSAValue, bound: float, near: SSAValue, far: SSAValue) -> SSAValue:
    """Values of an odd function: `near` where |x| is up to a bound, else `far` with x's sign."""
    word = e.bitcast(x, e.vector(i32))
    limit = e.bitcast(e.full(bound), e.vector(i32))
    is_near = e.compare("ule", e.and_(word, 0x7FFFFFFF), limit)
    signed = e.merge(e.bitcast(far, e.vector(i32)), word, 0x7FFFFFFF)
    return e.select(is_near, near, e.bitcast(signed, x.type))


def magnitude(e: Emitter, x: SSAValue) -> SSAValue:
    return e.bitcast(e.and_(e.bitcast(x, e.vector(i32)), 0x7FFFFFFF), x.type)


def minimum(e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
    """The lesser; NaN if either is."""
    return e.intrinsic(f"llvm.minimum.v{e.isa.lanes}f32", [a, b], a.type)


def maximum(e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
    """The greater; NaN if either is."""
    return e.intrinsic(f"llvm.maximum.v{e.isa.lanes}f32", [a, b], a.type)


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


class Greatest(Summed):
    """The greatest of each row of an f32 tile, as a tile of one column; NaN if any is."""

    def together(self, e: Emitter, a: SSAValue, b: SSAValue) -> SSAValue:
        return maximum(e, a, b)
