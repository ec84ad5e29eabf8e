"""Emit `llvm` dialect ops one after another: scalars, vectors, memory, loops and branches.

Values emitted once are remembered and reused where they dominate (`once`), so lazily evaluated
tiles do not repeat address arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from xdsl.dialects import llvm
from xdsl.dialects.builtin import (
    Float8E4M3FNType,
    Float8E8M0FNUType,
    IntegerType,
    VectorType,
    bf16,
    f32,
    i8,
    i16,
    i32,
    i64,
)
from xdsl.ir import Attribute, Block, Operation, Region, SSAValue

from gqc.codegen.cpu.isa import Isa
from gqc.codegen.cpu.ops import (
    build,
    dense_attribute,
    integer_attribute,
    intrinsic_op,
    load_op,
    mask_attribute,
    step_op,
    store_op,
    vector_of,
)
from gqc.formats.elements import ELEMENTS, Element

T = TypeVar("T")
BinaryOp = Callable[[SSAValue, SSAValue], Operation]

PTR = llvm.LLVMPointerType()
E8M0, E4M3 = Float8E8M0FNUType(), Float8E4M3FNType()

PREDICATES = ("eq", "ne", "slt", "sle", "sgt", "sge", "ult", "ule", "ugt", "uge")


def as_bits(type_: Attribute) -> VectorType:
    """The vector type of integers as wide as a vector type's elements. Memory is masked in these:
    LLVM moves masked bf16 through f32 where it has no bf16 instructions, by calling a library."""
    assert isinstance(type_, VectorType)
    (lanes,) = type_.get_shape()
    return vector_of(IntegerType(8 * type_.element_type.size), lanes)


@dataclass(frozen=True)
class Index:
    """An i64 in two parts, one of the run (or None) and one known now; and what is known of it.

    `low` and `high` are its range (None where nothing bounds it); `step` divides the first part.
    """

    base: SSAValue | None
    offset: int
    low: int
    high: int | None
    step: int = 0

    @staticmethod
    def constant(value: int) -> Index:
        return Index(None, value, value, value)

    @property
    def multiple(self) -> int:
        """A number that divides the index (0 only if it is 0)."""
        return math.gcd(self.step, self.offset)

    def __add__(self, offset: int) -> Index:
        high = None if self.high is None else self.high + offset
        return Index(self.base, self.offset + offset, self.low + offset, high, self.step)

    def fits(self, extent: int, bound: int) -> bool:
        """Whether `extent` elements from here certainly lie within `bound`."""
        return self.low >= 0 and self.high is not None and self.high + extent <= bound


def magnitude_mask(format: Element) -> int:
    """Exponent and mantissa of a float format, where f32 has these."""
    return (1 << format.bits - 1) - 1 << 23 - format.mantissa


class Emitter:
    """Appends ops to a block; loops and branches move on to a new block."""

    def __init__(self, isa: Isa, block: Block):
        self.isa = isa
        self.block = block
        self.known: dict[Hashable, Any] = {}
        self.at_end: list[Operation] = []
        """Ops for the function's end."""

    # Plumbing

    def emit(self, op: Operation) -> SSAValue:
        self.block.add_op(op)
        return op.results[0]

    def effect(self, op: Operation) -> None:
        self.block.add_op(op)

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value made for `key` earlier, if it dominates this point; else make it here."""
        value = self.known.get(key)
        if value is None:
            value = self.known[key] = make()
        return value

    @contextmanager
    def scope(self) -> Iterator[None]:
        """What is emitted inside does not dominate what comes after."""
        known, self.known = self.known, dict(self.known)
        yield
        self.known = known

    @contextmanager
    def at_start(self) -> Iterator[None]:
        """What is emitted inside goes to the function's start: no values but its arguments."""
        start, block, known = Block(), self.block, self.known
        self.block, self.known = start, {}
        yield
        self.block, self.known = block, known
        ops, region = list(start.ops), block.parent
        assert isinstance(region, Region) and region.first_block and region.first_block.first_op
        for op in ops:
            op.detach()
        region.first_block.insert_ops_before(ops, region.first_block.first_op)

    # Types and constants

    def vector(self, element: Attribute, lanes: int | None = None) -> VectorType:
        return vector_of(element, lanes or self.isa.lanes)

    def integer(self, value: int, type_: IntegerType = i64) -> SSAValue:
        return self.once(
            (type_, value),
            lambda: self.emit(build(llvm.ConstantOp, [], integer_attribute(value, type_), type_)),
        )

    def dense(self, element: Attribute, values: Sequence[float]) -> SSAValue:
        """A vector constant."""
        key = element, tuple(values)

        def make() -> SSAValue:
            attribute = dense_attribute(*key)
            return self.emit(llvm.ConstantOp(attribute, attribute.type))

        return self.once(key, make)

    def full(self, value: float) -> SSAValue:
        """An f32 vector of one value."""
        return self.dense(f32, [value] * self.isa.lanes)

    def bits(self, value: int) -> SSAValue:
        """An i32 vector of one bit pattern."""
        return self.dense(i32, [value] * self.isa.lanes)

    # Index arithmetic

    def scalar(self, index: Index) -> SSAValue:
        """An index as one i64."""
        if index.base is None:
            return self.integer(index.offset)
        if index.offset == 0:
            return index.base
        return self.arithmetic(llvm.AddOp, index.base, self.integer(index.offset))

    def add(self, a: Index, b: Index) -> Index:
        base = a.base or b.base
        if a.base is not None and b.base is not None:
            base = self.arithmetic(llvm.AddOp, a.base, b.base)
        high = None if a.high is None or b.high is None else a.high + b.high
        step = math.gcd(a.step, b.step)
        return Index(base, a.offset + b.offset, a.low + b.low, high, step)

    def multiply(self, a: Index, factor: int) -> Index:
        base = a.base
        if base is not None and factor != 1:
            base = self.arithmetic(llvm.MulOp, base, self.integer(factor))
        high = None if a.high is None else a.high * factor
        return Index(base, a.offset * factor, a.low * factor, high, a.step * factor)

    def divide(self, a: Index, divisor: int) -> Index:
        """a // divisor. The first part must be a multiple of the divisor, or of a divisor of it
        that the second stays below: the two parts then divide each for itself."""
        assert a.step % divisor == 0 or (divisor % a.step == 0 and a.offset < a.step), (a, divisor)
        base = a.base
        if base is not None and divisor != 1:
            base = self.arithmetic(llvm.UDivOp, base, self.integer(divisor))
        high = None if a.high is None else a.high // divisor
        step = a.step // divisor if a.step % divisor == 0 else 1
        return Index(base, a.offset // divisor, a.low // divisor, high, step)

    def quotient(self, a: Index, divisor: int) -> Index:
        """a // divisor of any index."""
        if a.base is None:
            return Index.constant(a.offset // divisor)
        base = self.arithmetic(llvm.UDivOp, self.scalar(a), self.integer(divisor))
        high = None if a.high is None else a.high // divisor
        step = a.multiple // divisor if a.multiple % divisor == 0 else 1
        return Index(base, 0, a.low // divisor, high, step)

    def remainder(self, a: Index, divisor: int) -> Index:
        """a % divisor of any index."""
        if a.base is None:
            return Index.constant(a.offset % divisor)
        base = self.arithmetic(llvm.URemOp, self.scalar(a), self.integer(divisor))
        multiple = math.gcd(a.multiple, divisor)
        return Index(base, 0, 0, divisor - multiple, multiple)

    def clamp(self, a: Index, bound: SSAValue) -> tuple[Index, SSAValue]:
        """The index, or the last one below the bound; and whether it was below."""
        value = self.scalar(a)
        inside = self.once(("inside", value, bound), lambda: self.compare("ult", value, bound))
        last = self.once(
            ("last", bound), lambda: self.emit(build(llvm.SubOp, [bound, self.integer(1)]))
        )
        nearest = self.once(("clamp", value, bound), lambda: self.select(inside, value, last))
        return Index(nearest, 0, 0, None, 1), inside

    def minimum(self, a: Index, b: Index) -> Index:
        """The lesser of two indices."""
        x, y = self.scalar(a), self.scalar(b)
        least = self.select(self.compare("ult", x, y), x, y)
        high = min((h for h in (a.high, b.high) if h is not None), default=None)
        return Index(least, 0, min(a.low, b.low), high, 1)

    def arithmetic(self, op: BinaryOp, a: SSAValue, b: SSAValue) -> SSAValue:
        return self.once((op, a, b), lambda: self.emit(build(op, [a, b])))

    # Scalars and vectors

    def compare(self, predicate: str, a: SSAValue, b: SSAValue) -> SSAValue:
        code = integer_attribute(PREDICATES.index(predicate), i64)
        return self.emit(build(llvm.ICmpOp, [a, b], code))

    def select(self, condition: SSAValue, a: SSAValue, b: SSAValue) -> SSAValue:
        return self.emit(build(llvm.SelectOp, [condition, a, b]))

    def bitcast(self, value: SSAValue, type_: Attribute) -> SSAValue:
        """The bits of a vector as another type."""
        if isinstance(value.owner, llvm.BitcastOp):
            value = value.owner.arg
        return value if value.type == type_ else self.emit(build(llvm.BitcastOp, [value], type_))

    def intrinsic(self, name: str, args: Sequence[SSAValue], result: Attribute) -> SSAValue:
        return self.emit(build(intrinsic_op, args, name, (result,)))

    def splat(self, scalar: SSAValue) -> SSAValue:
        """One scalar, or the lane of a vector of one, in every lane."""
        if isinstance(scalar.type, VectorType):
            return self.shuffle(scalar, [0] * self.isa.lanes)
        type_ = self.vector(scalar.type)
        undef = self.once(("undef", type_), lambda: self.emit(llvm.UndefOp(type_)))
        first = self.emit(build(llvm.InsertElementOp, [undef, scalar, self.integer(0, i32)]))
        return self.shuffle(first, [0] * self.isa.lanes)

    def shuffle(
        self, value: SSAValue, lanes: Sequence[int], other: SSAValue | None = None
    ) -> SSAValue:
        """Lanes of a vector in a new order, fixed now; those of another are numbered after them."""
        assert isinstance(value.type, VectorType)
        result = vector_of(value.type.element_type, len(lanes))
        mask = mask_attribute(tuple(lanes))
        return self.emit(build(llvm.ShuffleVectorOp, [value, other or value], mask, result))

    def fadd(self, a: SSAValue, b: SSAValue) -> SSAValue:
        """a + b; a product among them is rounded once, with the sum.

        LLVM's own contraction depends on what else a kernel does, so two kernels would give a row
        different bits.
        """
        for product, other in ((b, a), (a, b)):
            if isinstance(product.owner, llvm.FMulOp):
                x, y = product.owner.operands
                return self.fma(x, y, other)
        return self.emit(build(llvm.FAddOp, [a, b]))

    def fsub(self, a: SSAValue, b: SSAValue) -> SSAValue:
        """a − b; a product among them is rounded once, with the difference, as in `fadd`."""
        if isinstance(b.owner, llvm.FMulOp):
            x, y = b.owner.operands
            return self.fma(self.negated(x), y, a)
        if isinstance(a.owner, llvm.FMulOp):
            x, y = a.owner.operands
            return self.fma(x, y, self.negated(b))
        return self.emit(build(llvm.FSubOp, [a, b]))

    def negated(self, a: SSAValue) -> SSAValue:
        return self.fmul(a, self.full(-1.0))

    def fmul(self, a: SSAValue, b: SSAValue) -> SSAValue:
        return self.emit(build(llvm.FMulOp, [a, b]))

    def fma(self, a: SSAValue, b: SSAValue, c: SSAValue) -> SSAValue:
        """a·b + c, in one rounding where the CPU has the instruction."""
        if self.isa.fma:
            return self.emit(build(llvm.FMAOp, [a, b, c]))
        return self.intrinsic(f"llvm.fmuladd.v{self.isa.lanes}f32", [a, b, c], a.type)

    def shift(self, value: SSAValue, right: int) -> SSAValue:
        """Logical shift of i32 lanes; to the left where `right` is negative."""
        if right == 0:
            return value
        op = llvm.LShrOp if right > 0 else llvm.ShlOp
        return self.emit(build(op, [value, self.bits(abs(right))]))

    def and_(self, value: SSAValue, mask: int) -> SSAValue:
        return self.emit(build(llvm.AndOp, [value, self.bits(mask)]))

    def or_(self, a: SSAValue, b: SSAValue) -> SSAValue:
        return self.emit(build(llvm.OrOp, [a, b]))

    def merge(self, low: SSAValue, high: SSAValue, mask: int) -> SSAValue:
        """Bits of `low` where the mask is set, of `high` elsewhere."""
        return self.or_(self.and_(low, mask), self.and_(high, ~mask & 0xFFFFFFFF))

    def widen(self, value: SSAValue) -> SSAValue:
        """A float vector as f32 lanes (exact)."""
        if value.type == self.vector(f32):
            return value
        if value.type == self.vector(bf16):  # the upper half of f32; LLVM's fpext may scalarize
            halves = self.bitcast(value, self.vector(i16))
            wide = self.emit(build(llvm.ZExtOp, [halves], self.vector(i32)))
            return self.bitcast(self.shift(wide, -16), self.vector(f32))
        if value.type == self.vector(E8M0):
            return self.widen_e8m0(value)
        if value.type == self.vector(E4M3):
            return self.widen_e4m3(value)
        return self.emit(build(llvm.FPExtOp, [value], self.vector(f32)))

    def widen_e8m0(self, value: SSAValue) -> SSAValue:
        """What the bytes of E8M0 stand for."""
        bytes_ = self.bitcast(value, self.vector(i8))
        return self.power_of_e8m0(self.emit(build(llvm.ZExtOp, [bytes_], self.vector(i32))))

    def extreme(self, which: str, a: SSAValue, b: SSAValue) -> SSAValue:
        """umin, umax, smin or smax of i32 lanes."""
        return self.intrinsic(f"llvm.{which}.v{self.isa.lanes}i32", [a, b], a.type)

    def power_of_e8m0(self, exponent: SSAValue) -> SSAValue:
        """2^(byte − 127) of E8M0 in i32 lanes (OCP MX v1.0, section 5.4.1): bytes are the exponents
        of f32, but for the two at the ends. 0 is a subnormal there, greater than what the shift
        gives; and 255 is no number, as infinity times zero is.
        """
        least, power = self.bits(0x400000), self.shift(exponent, -23)
        bits = self.extreme("smax", power, least)
        value = self.bitcast(bits, self.vector(f32))
        return self.fma(value, self.full(0.0), value)

    def widen_e4m3(self, value: SSAValue) -> SSAValue:
        """What the bytes of E4M3 stand for; those of NaN are told as bytes, which takes less."""
        format, magnitude = ELEMENTS["f8E4M3FN"], self.dense(i8, [0x7F] * self.isa.lanes)
        bytes_ = self.bitcast(value, self.vector(i8))
        is_nan = self.compare("eq", self.emit(build(llvm.AndOp, [bytes_, magnitude])), magnitude)
        code = self.emit(build(llvm.SExtOp, [bytes_], self.vector(i32)))
        return self.from_fields(self.shift(code, format.mantissa - 23), is_nan, format)

    def decode_float(self, code: SSAValue, format: Element) -> SSAValue:
        """f32 values of i32 codes of a float format; bits above its width may be anything.

        Codes beyond the greatest number are infinities and NaNs.
        """
        top = self.shift(code, format.bits - 32)  # the sign's copies stay above the exponent
        moved = self.emit(build(llvm.AShrOp, [top, self.bits(8 - format.exponent)]))
        greatest = self.bits(format.values.index(format.maximum) << 23 - format.mantissa)
        magnitude = self.and_(moved, magnitude_mask(format))
        return self.from_fields(moved, self.compare("sgt", magnitude, greatest), format)

    def from_fields(self, moved: SSAValue, is_special: SSAValue, format: Element) -> SSAValue:
        """f32 values of codes of a float format, moved to where f32 has its fields, with copies of
        the sign above.

        The value is multiplied by the difference of the biases: exact, and it makes subnormals
        normal (so it needs a CPU that does not flush them to zero: torch's default). Special ones
        get f32's last exponent, under which theirs are infinities and NaNs too.
        """
        small = self.and_(moved, 0x80000000 | magnitude_mask(format))
        bias = self.full(math.ldexp(1.0, 127 - format.bias))
        value = self.fmul(self.bitcast(small, self.vector(f32)), bias)
        lanes = self.emit(build(llvm.SExtOp, [is_special], self.vector(i32)))
        bits = self.or_(self.bitcast(value, self.vector(i32)), self.and_(lanes, 0x7F800000))
        return self.bitcast(bits, self.vector(f32))

    def round(self, value: SSAValue, element: Attribute) -> SSAValue:
        """f32 lanes rounded to values of another float type: the nearest, ties to even."""
        if element == f32:
            return value
        if element == bf16:
            return self.round_to_bf16(value)
        return self.widen(self.narrow(value, element))

    def round_to_bf16(self, value: SSAValue) -> SSAValue:
        """Rounding by integer arithmetic: the instruction of AVX512-BF16 makes subnormals zeros,
        and without it LLVM calls a library. NaN, magnitudes above infinity's, becomes quiet."""
        word = self.bitcast(value, self.vector(i32))
        bias = self.emit(build(llvm.AddOp, [self.and_(self.shift(word, 16), 1), self.bits(0x7FFF)]))
        rounded = self.emit(build(llvm.AddOp, [word, bias]))
        is_nan = self.compare("ugt", self.and_(word, 0x7FFFFFFF), self.bits(0x7F800000))
        kept = self.select(is_nan, self.or_(word, self.bits(0x400000)), rounded)
        return self.bitcast(self.and_(kept, 0xFFFF0000), self.vector(f32))

    def narrow(self, value: SSAValue, element: Attribute) -> SSAValue:
        """f32 lanes in a float type that holds their values."""
        if element == f32:
            return value
        if element == bf16:  # the upper half
            word = self.shift(self.bitcast(value, self.vector(i32)), 16)
            return self.bitcast(
                self.emit(build(llvm.TruncOp, [word], self.vector(i16))), self.vector(bf16)
            )
        return self.emit(build(llvm.FPTruncOp, [value], self.vector(element)))

    # Memory

    def address(self, pointer: SSAValue, element: Attribute, index: Index) -> SSAValue:
        """Address of an element: what the run decides first, then a constant step."""

        def step(start: SSAValue, distance: SSAValue | int) -> SSAValue:
            known = isinstance(distance, int)
            operands, others = ([start], [distance]) if known else ([start, distance], [])
            key = ("gep", start, element, distance)
            return self.once(key, lambda: self.emit(build(step_op, operands, *others, element)))

        start = pointer if index.base is None else step(pointer, index.base)
        return start if index.offset == 0 else step(start, index.offset)

    def load(self, address: SSAValue, type_: Attribute, align: int) -> SSAValue:
        return self.emit(build(load_op, [address], type_, align))

    def store(self, value: SSAValue, address: SSAValue, align: int) -> None:
        self.effect(build(store_op, [value, address], align))

    def masked_load(
        self, address: SSAValue, type_: VectorType, align: int, mask: SSAValue
    ) -> SSAValue:
        """A vector of which only the lanes under the mask are read; the others are 0."""
        bits = as_bits(type_)
        zero = self.once(("zero", bits), lambda: self.emit(llvm.ZeroOp(result_types=[bits])))
        args = [address, self.integer(align, i32), mask, zero]
        name = f"llvm.masked.load.v{self.isa.lanes}{bits.element_type}.p0"
        return self.bitcast(self.intrinsic(name, args, bits), type_)

    def masked_store(self, value: SSAValue, address: SSAValue, align: int, mask: SSAValue) -> None:
        bits = as_bits(value.type)
        args = [self.bitcast(value, bits), address, self.integer(align, i32), mask]
        name = f"llvm.masked.store.v{self.isa.lanes}{bits.element_type}.p0"
        self.effect(build(intrinsic_op, args, name, ()))

    def prefetch(self, address: SSAValue) -> None:
        """Ask for a cache line that a later iteration reads."""
        read, keep, data = (self.integer(v, i32) for v in (0, 3, 1))
        self.effect(build(intrinsic_op, [address, read, keep, data], "llvm.prefetch.p0", ()))

    def lanes_below(self, bound: SSAValue) -> SSAValue:
        """Mask of the lanes whose number is below an i64."""
        numbers = self.dense(i64, range(self.isa.lanes))
        return self.compare("slt", numbers, self.splat(bound))

    # Control flow

    def loop(
        self,
        lower: SSAValue,
        upper: SSAValue,
        step: int,
        carried: Sequence[SSAValue],
        body: Callable[[SSAValue, Sequence[SSAValue]], Sequence[SSAValue]],
    ) -> Sequence[SSAValue]:
        """Run `body(i, carried) -> carried` for i from lower to upper by step, at least once."""
        head = self.start_block([i64, *(v.type for v in carried)], [lower, *carried])
        with self.scope():
            results = body(head.args[0], head.args[1:])
            following = self.emit(build(llvm.AddOp, [head.args[0], self.integer(step)]))
            again = self.compare("slt", following, upper)
        after = Block()
        self.effect(llvm.CondBrOp(again, head, [following, *results], after, []))
        self.enter(after)
        return results

    @contextmanager
    def when(self, condition: SSAValue) -> Iterator[None]:
        """What is emitted inside runs if the condition holds."""
        then, after = Block(), Block()
        self.effect(llvm.CondBrOp(condition, then, [], after, []))
        self.enter(then)
        with self.scope():
            yield
        self.effect(llvm.BrOp(after))
        self.enter(after)

    def start_block(self, types: Sequence[Attribute], values: Sequence[SSAValue]) -> Block:
        block = Block(arg_types=types)
        self.effect(llvm.BrOp(block, *values))
        self.enter(block)
        return block

    def enter(self, block: Block) -> None:
        region = self.block.parent
        assert isinstance(region, Region)
        region.insert_block(block, len(region.blocks))
        self.block = block
