"""Store tiles: rows of vectors, rows interleaved in pairs, tiles narrower than a vector."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from xdsl.dialects.builtin import i8
from xdsl.ir import Attribute, SSAValue

from gqc.codegen.cpu import int8
from gqc.codegen.cpu.emitter import Emitter, Index
from gqc.codegen.cpu.tiles import CACHE_LINE, Array, Interleaved, Loaded, Tile


def rows(e: Emitter, value: Tile, target: Loaded) -> None:
    """All rows are computed before the first is stored, unless a loop has to go over them."""
    if value.rows > MANY_ROWS:
        over_rows(e, value, lambda i: store_row(e, value.row(e, i), target, i))
        return
    computed = [value.row(e, Index.constant(m)) for m in range(value.rows)]
    for m, vectors in enumerate(computed):
        store_row(e, vectors, target, Index.constant(m))


MANY_ROWS = 16
"""Rows of a tile beyond which a loop goes over them."""


def over_rows(e: Emitter, value: Tile, store: Callable[[Index], None]) -> None:
    """Call `store` with the number of each row, in a loop over so many of them as a word holds."""
    some = value.granule if value.rows % value.granule == 0 else value.rows

    def body(first: SSAValue, _: Sequence[SSAValue]) -> Sequence[SSAValue]:
        start = Index(first, 0, 0, value.rows - some, some)
        for m in range(some):
            store(start + m)
        return []

    e.loop(e.integer(0), e.integer(value.rows), some, [], body)


def store_row(e: Emitter, vectors: Sequence[SSAValue], target: Loaded, i: Index) -> None:
    array, (*leading, first, column) = target.array, target.offsets
    row = e.add(first, i)
    stored = [narrowed(e, v, array.element) for v in vectors]
    with below(e, array, row, len(leading)):
        for lane, vector in zip(target.vectors(e), stored, strict=True):
            store_vector(e, target, vector, [*leading, row, column + lane])


def narrowed(e: Emitter, value: SSAValue, element: Attribute) -> SSAValue:
    """Lanes as an array has them; codes are held as what they stand for."""
    return int8.as_bytes(e, value) if element == i8 else e.narrow(value, element)


def together(e: Emitter, value: Tile, array: Interleaved, offsets: tuple[Index, ...]) -> None:
    """Store rows two or four at a time, interleaved."""

    def store(i: Index) -> None:
        if i.offset % array.together:
            return
        words = value.quad(e, i) if isinstance(value, int8.Quads) else value.pair(e, i)
        for lane, word in zip(value.vectors(e), words, strict=True):
            address = array.word_address(e, e.add(offsets[0], i), offsets[1] + lane)
            e.store(word, address, CACHE_LINE)

    over_rows(e, value, store)


def elements(e: Emitter, value: Tile, target: Loaded) -> None:
    """Store a tile narrower than a vector one by one: sums of rows, scales of blocks."""
    array, (*leading, first, column) = target.array, target.offsets

    def store(m: Index) -> None:
        row = e.add(first, m)
        splats = [value.splat(e, m, Index.constant(n)) for n in range(value.columns)]
        with below(e, array, row, len(leading)):
            for n, splat in enumerate(splats):
                address = array.address(e, [*leading, row, column + n])
                e.store(e.shuffle(splat, [0]), address, array.align)

    if value.rows > MANY_ROWS:
        over_rows(e, value, store)
        return
    for m in range(value.rows):
        store(Index.constant(m))


def below(e: Emitter, array: Array, row: Index, axis: int) -> AbstractContextManager[None]:
    """What is emitted inside runs if an array has a row, or always if it certainly has."""
    if array.holds(row, 1, axis):
        return nullcontext()
    return e.when(e.compare("ult", e.scalar(row), array.bound(e, axis)))


def store_vector(e: Emitter, target: Loaded, vector: SSAValue, indices: list[Index]) -> None:
    array = target.array
    address = array.address(e, indices)
    if array.holds(target.offsets[-1], target.columns, len(array.shape) - 1):
        e.store(vector, address, array.align)
    else:
        e.masked_store(vector, address, array.align, target.mask(e, indices[-1]))
