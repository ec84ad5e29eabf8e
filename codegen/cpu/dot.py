"""The dot of two tiles: a loop over the shared axis that keeps its sums in registers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from xdsl.dialects.builtin import bf16, f32
from xdsl.ir import SSAValue

from gqc.codegen.cpu.codes import Decoded
from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import Loaded, LoadedTogether, Registers, Tile, Transposed, Vectors

UNROLLED = 8
"""Steps of a round of the loop. With more of them LLVM moves reads of weights together, for which
memory is slower, or spills registers; and they take longer to compile."""

UNROLLED_IN_MEMORY = 4
"""The same where nothing is decoded: more of them run no faster."""


def dot(e: Emitter, acc: Tile, lhs: Tile, rhs: Tile) -> Registers:
    """acc + lhs · rhs of floats."""
    if isinstance(rhs, Transposed):
        return dot_of_rows(e, acc, lhs, rhs.source)
    extent, width = lhs.columns, len(acc.vectors(e))
    paired = e.isa.dot_bf16 is not None and lhs.element == rhs.element == bf16
    step = 2 if paired and extent % 2 == 0 else 1
    some = max(rhs.granule, unrolled(e, rhs, step))

    def add(sums: Vectors, k: Index) -> None:
        columns = rhs.pair(e, k) if step == 2 else rhs.row(e, k)
        for m in range(acc.rows):
            add_products(e, sums, m * width, lhs, m, k, columns)

    return accumulate(e, acc, extent, step, some, add)


def unrolled(e: Emitter, rhs: Tile, step: int) -> int:
    """Rows of rhs, taken so many at a step, that are wanted in a round of the loop."""
    if isinstance(rhs, Loaded | LoadedTogether):
        return step * UNROLLED_IN_MEMORY
    in_pairs = step == 2 and isinstance(rhs, Decoded) and rhs.in_pairs(e)
    return step * UNROLLED if in_pairs else UNROLLED  # else each row is decoded by itself


def accumulate(
    e: Emitter,
    acc: Tile,
    extent: int,
    step: int,
    wanted: int,
    add: Callable[[Vectors, Index], None],
) -> Registers:
    """What `add` makes of the vectors of acc, called with each step of the shared axis in turn.

    It is a loop, each round of which unrolls as much of the axis as is wanted, if that divides it.
    """
    chunk = wanted if extent % wanted == 0 else extent

    def body(first: Index, sums: Sequence[SSAValue]) -> Sequence[SSAValue]:
        sums = list(sums)
        for k in range(0, chunk, step):
            add(sums, first + k)
        return sums

    start = [v for m in range(acc.rows) for v in acc.row(e, Index.constant(m))]
    if chunk == extent:
        sums = body(Index.constant(0), start)
    else:
        sums = e.loop(
            e.integer(0),
            e.integer(extent),
            chunk,
            start,
            lambda k, sums: body(Index(k, 0, 0, extent - chunk, chunk), sums),
        )
    width = len(acc.vectors(e))
    values = [list(sums[m : m + width]) for m in range(0, len(sums), width)]
    return Registers(acc.shape, acc.element, values)


def add_products(
    e: Emitter, sums: Vectors, at: int, lhs: Tile, m: int, k: Index, columns: Vectors
) -> None:
    """Row m of the accumulators, from `at` on, plus lhs (m, k) times each column vector."""
    row = Index.constant(m)
    paired = columns[0].type != e.vector(f32)
    left = lhs.pair_splat(e, row, k) if paired else lhs.splat(e, row, k)
    for v, right in enumerate(columns, at):
        if paired:
            assert e.isa.dot_bf16
            sums[v] = e.intrinsic(e.isa.dot_bf16, [sums[v], left, right], sums[v].type)
        else:
            sums[v] = e.fma(left, right, sums[v])


# Rows by rows


def dot_of_rows(e: Emitter, acc: Tile, lhs: Tile, rhs: Tile) -> Registers:
    """acc + lhs · rhsᵀ of floats: both have the shared axis along the lanes.

    Each pair of rows gives a vector whose lanes sum up to their dot; those of as many rows of rhs
    as there are lanes are summed up together.
    """
    paired = all(isinstance(t, Loaded) and t.has_row_pairs(e) for t in (lhs, rhs))
    values: list[Vectors] = []
    for m in range(acc.rows):
        sums = acc.row(e, Index.constant(m))
        left = vectors_of(e, lhs, m, paired)
        for v, first in enumerate(acc.vectors(e)):
            parts = [
                products(e, left, vectors_of(e, rhs, n, paired))
                for n in range(first, first + e.isa.lanes)
            ]
            sums[v] = e.fadd(sums[v], lanes_summed(e, parts))
        values.append(sums)
    return Registers(acc.shape, acc.element, values)


def vectors_of(e: Emitter, tile: Tile, row: int, paired: bool) -> Vectors:
    """A row, as vectors of bf16 pairs or of f32."""
    i = Index.constant(row)
    if paired:
        assert isinstance(tile, Loaded)
        return tile.row_pairs(e, i)
    return tile.row(e, i)


def products(e: Emitter, left: Vectors, right: Vectors) -> SSAValue:
    """A vector whose lanes sum up to the dot of two rows."""
    total = e.full(0.0)
    for a, b in zip(left, right, strict=True):
        if a.type == total.type:
            total = e.fma(a, b, total)
        else:
            assert e.isa.dot_bf16
            total = e.intrinsic(e.isa.dot_bf16, [total, a, b], total.type)
    return total


def lanes_summed(e: Emitter, vectors: Vectors) -> SSAValue:
    """Lane n of the result is the sum of the lanes of vector n; there is one for each lane.

    Vectors are added in twos, half the lanes of one beside half of the other, until one is left.
    """
    distance = len(vectors) // 2
    while distance:
        vectors = [
            add_halves(e, a, b, distance)
            for a, b in zip(vectors[:distance], vectors[distance:], strict=True)
        ]
        distance //= 2
    return vectors[0]


def add_halves(e: Emitter, a: SSAValue, b: SSAValue, distance: int) -> SSAValue:
    """Lanes of a plus those at a distance, where that is up, and of b where it is down."""
    lanes = range(e.isa.lanes)
    near = [lane if lane & distance == 0 else e.isa.lanes + lane for lane in lanes]
    far = [lane + distance if lane & distance == 0 else near[lane] - distance for lane in lanes]
    return e.fadd(e.shuffle(a, near, b), e.shuffle(a, far, b))
