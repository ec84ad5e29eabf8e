"""How many bytes a thread of a compiled kernel loads at once, for each load of its source."""

from __future__ import annotations

import re
from collections import defaultdict
from math import prod
from typing import TYPE_CHECKING

from gqc.codegen.triton.machines import MACHINES

if TYPE_CHECKING:
    from gqc.codegen.triton.offline import KernelArtifacts

WIDEST = 16
"""Bytes: 128 bits."""

Place = tuple[int, int]
"""Line and column of the source, from 1."""

LOAD = re.compile(r"tt\.load .*tensor<([\dx]+)x!tt\.ptr<[a-z]+(\d+)\w*>> loc\((#loc\d+)\)")
NAMED = re.compile(r'^(#loc\d*) = loc\("[^"]*"\((#loc\d*)\)\)', re.M)
PLACED = re.compile(r'^(#loc\d*) = loc\("[^"]*":(\d+):(\d+)\)', re.M)

LINE = re.compile(r"\s*\.loc\s+\d+ (\d+) (\d+)")
PTX = re.compile(r"ld\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)|cp\.async\.c[ag]\..*, (0x\w+)(?:,|;)")
AMD = re.compile(r"\s(?:global|buffer)_load_(?:lds_)?(\w+)")
AMD_BYTES = {"dwordx4": 16, "dwordx3": 12, "dwordx2": 8, "dword": 4, "ushort": 2, "ubyte": 1}


def narrow_loads(built: KernelArtifacts) -> list[str]:
    """Each load of the source narrower than its tile allows, with both widths."""
    threads = built.source.warps * MACHINES[built.target].triton[2]
    widths, faults = widths_of(built), []
    for place, (shape, itemsize) in tiles_of(built.ttir).items():
        array = built.source.arrays.get(name := built.source.loads.get(place, ""))
        if array is None or place not in widths:
            continue
        share = max(itemsize, prod(shape) * itemsize // threads)
        best = min(WIDEST, lowest_bit(array.row_bytes), shape[-1] * itemsize, lowest_bit(share))
        if min(widths[place]) < best:
            faults.append(f"{name} by {8 * min(widths[place])} bits, could be {8 * best}")
    return faults


def lowest_bit(n: int) -> int:
    """The largest power of two that divides a positive number."""
    return n & -n


def tiles_of(ttir: str) -> dict[Place, tuple[list[int], int]]:
    """Where the source loads a tile: its shape and bytes an element, from Triton's first IR."""
    places = {name: (int(line), int(column)) for name, line, column in PLACED.findall(ttir)}
    names = dict(NAMED.findall(ttir))
    tiles = {}
    for shape, bits, location in LOAD.findall(ttir):
        place = places.get(names.get(location, location))
        if place is not None:
            tiles[place] = ([int(n) for n in shape.split("x")], max(1, int(bits) // 8))
    return tiles


def widths_of(built: KernelArtifacts) -> dict[Place, set[int]]:
    """Bytes of the load instructions that each place of the source became.

    TMA copies have no width: places loaded so are absent.
    """
    widths: dict[Place, set[int]] = defaultdict(set)
    place = (0, 0)
    for line in (built.ptx or built.amdgcn or "").splitlines():
        if match := LINE.match(line):
            place = (int(match[1]), int(match[2]))
        elif width := width_of(line):
            widths[place].add(width)
    return widths


def width_of(line: str) -> int:
    """Bytes that an instruction loads from global memory; 0 for any other."""
    if match := PTX.search(line):
        count, bits, copied = match.groups()
        return int(copied, 16) if copied else int(count or 1) * int(bits) // 8
    match = AMD.search(line)
    return AMD_BYTES.get(match[1].split("_")[0], 1) if match else 0
