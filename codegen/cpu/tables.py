"""Decoding by look-ups in tables that lie in registers: codes to bf16, two in a 32-bit lane."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from functools import cache

from xdsl.dialects import llvm
from xdsl.dialects.builtin import i8, i16, i32
from xdsl.ir import SSAValue

from gqc.codegen.cpu.emitter import Emitter
from gqc.formats.elements import Element
from gqc.formats.packing import planes_of


def repeated(values: Sequence[float], count: int, start: int = 0) -> list[float]:
    """A table repeated to `count` entries, so that only bits of an index from one on matter."""
    return [values[(i >> start) % len(values)] for i in range(count)]


def bf16_bits(value: float) -> int:
    """Bits of a value that bf16 holds exactly, as a signed 16-bit integer."""
    (bits,) = struct.unpack("<i", struct.pack("<f", value))
    return bits >> 16


@cache
def table_of(format: Element) -> list[int]:
    """Bits of the values of all codes in bf16, as signed integers."""
    return [bf16_bits(value) for value in format.values]


def pairs(e: Emitter, codes: SSAValue, format: Element, start: int = 0) -> SSAValue:
    """bf16 pairs of pairs of codes, in halves of lanes from a bit on: from a table in one register,
    in two, or in four."""
    lanes = 2 * e.isa.lanes
    type_ = e.vector(i16, lanes)
    table, indices = table_of(format), e.bitcast(codes, type_)
    if len(table) <= lanes:
        assert e.isa.permute_i16
        whole = e.dense(i16, repeated(table, lanes, start))
        found = e.intrinsic(e.isa.permute_i16, [whole, indices], type_)
    else:
        found = look_up_two(e, indices, table[: 2 * lanes])
    if rest := table[2 * lanes :]:
        bit = e.emit(llvm.AndOp(indices, e.dense(i16, [2 * lanes] * lanes)))
        is_upper = e.compare("ne", bit, e.dense(i16, [0] * lanes))
        found = e.select(is_upper, look_up_two(e, indices, rest), found)
    return e.bitcast(found, e.vector(i32))


def look_up_two(e: Emitter, indices: SSAValue, table: Sequence[int]) -> SSAValue:
    """Entries of a table in two registers, by the lower bits of 16-bit indices."""
    lanes = 2 * e.isa.lanes
    low, high = e.dense(i16, table[:lanes]), e.dense(i16, table[lanes:])
    assert e.isa.permute2_i16
    return e.intrinsic(e.isa.permute2_i16, [low, indices, high], e.vector(i16, lanes))


def pairs_of_bytes(e: Emitter, words: SSAValue, format: Element, first: int) -> SSAValue:
    """bf16 pairs of codes `first` and `first` + 1 of the four in each word.

    The lower and the upper bytes of all four are looked up at once, then brought together.
    """

    def bytes_(shift: int) -> SSAValue:
        found = e.once(
            ("bytes", words, shift), lambda: look_up_bytes(e, words, byte_table(format, shift))
        )
        return e.bitcast(found, e.vector(i32))

    low, high, even = bytes_(0), bytes_(8), 0x00FF00FF
    (plane,) = planes_of(8)
    if plane.codes[first % 4][0].shift == 0:
        return e.merge(low, e.shift(high, -8), even)
    return e.merge(e.shift(low, 8), high, even)


@cache
def byte_table(format: Element, shift: int) -> list[int]:
    """The lower byte of the bf16 of each 8-bit code, or with a shift of 8 the upper one."""
    signs = [0x8000 * (code >> 7) if math.isnan(v) else 0 for code, v in enumerate(format.values)]
    return [
        (bf16_bits(v) | sign) >> shift & 0xFF for v, sign in zip(format.values, signs, strict=True)
    ]


def look_up_bytes(e: Emitter, words: SSAValue, table: Sequence[int]) -> SSAValue:
    """Each byte's entry in a table of 256: by lower bits in each half of it, then by the upper."""
    lanes = 4 * e.isa.lanes
    type_ = e.vector(i8, lanes)
    indices = e.bitcast(words, type_)

    def in_half(entries: Sequence[int]) -> SSAValue:
        signed = [n - (n >> 7 << 8) for n in entries]
        low, high = e.dense(i8, signed[:lanes]), e.dense(i8, signed[lanes:])
        assert e.isa.permute2_i8
        return e.intrinsic(e.isa.permute2_i8, [low, indices, high], type_)

    lower, upper = table[: 2 * lanes], table[2 * lanes :]
    found = in_half(lower)
    if upper == [n | 0x80 for n in lower]:  # they differ by the sign
        return e.or_(found, e.bitcast(e.and_(words, 0x80808080), type_))
    if upper == lower:
        return found
    is_upper = e.compare("slt", indices, e.dense(i8, [0] * lanes))
    return e.select(is_upper, in_half(upper), found)
