"""What a printed kernel says of itself: target, arrays, tile and loop, read from its source."""

from __future__ import annotations

import ast
import math
import re
from dataclasses import dataclass

from gqc.errors import GqcError

TITLE = re.compile(r"Triton kernel (\w+) for (\w+)(?: \(matrix: (\w+)\))?, printed by gqc\.")
TILE = re.compile(r"each program makes a (\d+)×(\d+) tile of (\w+)")
ARRAY = re.compile(r"^(\w+): (\w+) \[((?:M|\d+)(?:, (?:M|\d+))*)\]$", re.M)
BITS = re.compile(r"(\d+)")
ROWS = "M"


@dataclass(frozen=True)
class Array:
    """An argument: bytes an element, and shape, in which None stands for the number of rows."""

    itemsize: int
    shape: tuple[int | None, ...]

    def bytes(self, rows: int) -> int:
        return self.itemsize * math.prod(rows if n is None else n for n in self.shape)

    @property
    def row_bytes(self) -> int:
        return self.itemsize * (self.shape[-1] or 1)


@dataclass(frozen=True)
class Source:
    """A printed kernel. depth and step: bounds of the loop over K, or (1, 1) without a loop.

    loads: where (line, column) which array is loaded, both from 1.
    """

    name: str
    target: str
    matrix: str
    arrays: dict[str, Array]
    tile: tuple[int, int]
    depth: int
    step: int
    warps: int
    loads: dict[tuple[int, int], str]

    @property
    def steps(self) -> int:
        return -(-self.depth // self.step)

    @property
    def columns(self) -> int:
        """Columns of the output, the last array."""
        return [*self.arrays.values()][-1].shape[-1] or 1


def read_source(text: str) -> Source:
    """Read a source that `emit` printed. Raises GqcError for any other text."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # as ast.parse says
        raise GqcError(f"no Python source: {error}") from error
    title = TITLE.search(ast.get_docstring(module) or "")
    if title is None:
        raise GqcError("no kernel printed by gqc: its first line does not say for which target")
    name, target, matrix = title.groups()
    functions = [f for f in module.body if isinstance(f, ast.FunctionDef) and f.name == name]
    doc = ast.get_docstring(functions[0]) if functions else None
    tile = TILE.search(doc or "")
    if doc is None or tile is None or 0 in (int(tile[1]), int(tile[2])):
        raise GqcError(f"no kernel printed by gqc: {name} does not say which tile it makes")
    arrays = {array: Array(itemsize(t), shape(s)) for array, t, s in ARRAY.findall(doc)}
    taken = [arg.arg for arg in functions[0].args.args if arg.arg != ROWS]
    if not arrays or taken != [*arrays]:
        raise GqcError(f"no kernel printed by gqc: {name} does not say which arrays it takes")
    depth, step = loop_bounds(functions[0])
    if step < 1:
        raise GqcError(f"no kernel printed by gqc: {name} has a loop in steps of {step}")
    return Source(
        *(name, target, matrix or "mma", arrays, (int(tile[1]), int(tile[2])), depth, step),
        warps=options(module).get("num_warps", 4),
        loads=loads(functions[0]),
    )


def itemsize(element: str) -> int:
    """Bytes of an element of Triton's: its name holds the bits, as in uint8, float8e4nv."""
    bits = BITS.search(element)
    if bits is None:
        raise GqcError(f"no kernel printed by gqc: arrays of {element}")
    return max(1, int(bits[1]) // 8)


def shape(text: str) -> tuple[int | None, ...]:
    return tuple(None if n == ROWS else int(n) for n in text.split(", "))


def loop_bounds(function: ast.FunctionDef) -> tuple[int, int]:
    """Stop and step of `for k in range(0, stop, step)`."""
    for node in ast.walk(function):
        if isinstance(node, ast.For) and isinstance(node.iter, ast.Call):
            bounds = [a.value for a in node.iter.args if isinstance(a, ast.Constant)]
            if len(bounds) == 3 and all(isinstance(b, int) for b in bounds):
                start, stop, step = bounds
                return int(stop) - int(start), int(step)  # pyright: ignore[reportArgumentType]
    return 1, 1


def options(module: ast.Module) -> dict[str, int]:
    for node in module.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "OPTIONS":
            try:
                found = ast.literal_eval(node.value)
            except ValueError as error:
                raise GqcError(f"no kernel printed by gqc: its OPTIONS: {error}") from error
            if isinstance(found, dict) and isinstance(found.get("num_warps", 4), int):
                return found
            raise GqcError("no kernel printed by gqc: its OPTIONS do not say how many warps run")
    return {}


def loads(function: ast.FunctionDef) -> dict[tuple[int, int], str]:
    """The array that each `tl.load` reads: its pointers begin with the array's name."""
    found = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Call) and node.args and ast.unparse(node.func) == "tl.load":
            pointer = node.args[0]
            while isinstance(pointer, ast.BinOp):
                pointer = pointer.left
            found[node.lineno, node.col_offset + 1] = ast.unparse(pointer)
    return found
