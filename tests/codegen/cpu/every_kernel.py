"""Every kernel that the tables of CPUs admit, lowered: without the machine, and without LLVM.

    python tests/codegen/cpu/every_kernel.py [TARGET…]

lowers all of them, or those of some targets, which takes minutes; tests lower some of each kind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from gqc.codegen import cpu
from gqc.dialects.tile import KernelOp
from gqc.errors import GqcError
from gqc.formats.elements import ELEMENTS
from gqc.legality import legality
from gqc.schemes import GROUPS
from gqc.targets import DECODES, TARGETS, Tiling

CPUS = [name for name, target in TARGETS.items() if target.backend == "cpu"]
ZEROS = ("", ", zero = {scale}, zero_mode = original", ", zero = {scale}, zero_mode = rescale")
EIGHT_BITS = ("f8E8M0FNU", "f8E4M3FN")
PACKED = ", zero = {element}, zero_mode = quantized"


@dataclass(frozen=True)
class Case:
    """One kernel: of a weight's format and K, by floats of an activation's type."""

    target: str
    format: str
    k: int
    activation: str
    tiling: Tiling

    def kernel(self, linear: type) -> KernelOp:
        """Raises AssertionError if the target refuses the format."""
        layer = linear(130, self.k, self.format, self.activation)
        found = legality(TARGETS[self.target], self.activation, None, layer.element, (130, self.k))
        assert found.kind == "emulated", found
        return layer.kernel(self.target.removeprefix("cpu_"), self.tiling.rows, self.tiling)


def formats() -> Iterator[tuple[str, int]]:
    """Each element that kernels decode in each block, with a K that blocks divide; of blocks of a
    row there are two, of which one leaves a tail. Scales and zero points take turns."""
    blocks = [*((str(group), 512) for group in GROUPS), ("?", 512), ("?", 100)]
    for turn, ((name, scales), (block, k)) in enumerate(product(DECODES.items(), blocks)):
        element, scale = ELEMENTS[name], scales[turn // 2 % len(scales)]
        zero = ""
        if element.is_integer and scale not in EIGHT_BITS:
            zeros = ZEROS if element.signed else (*ZEROS, PACKED)
            zero = zeros[turn % len(zeros)].format(scale=scale, element=name)
        whole = ", global = f32" if scale == "f8E4M3FN" else ""
        yield f"1x{block} : {scale} : {name}{zero}{whole}", k


def cases(target: str, activations: tuple[str, ...] | None = None) -> Iterator[Case]:
    """All of a target, one for each tile of its buckets."""
    row = TARGETS[target]
    for (format, k), activation in product(formats(), activations or tuple(row.units)):
        bits = ELEMENTS[format.split(" : ")[2].split(",")[0]].bits
        tiles = {(t.bm, t.bn, t.panel): t for t in row.tilings_of(bits, activation)}
        for tiling in tiles.values():
            yield Case(target, format, k, activation, tiling)


def problem(case: Case, linear: type) -> str | None:
    """What is wrong with a kernel; None if it is lowered."""
    try:
        cpu.lower(case.kernel(linear))
    except (GqcError, AssertionError) as error:
        return f"{case}: {error}"
    return None


if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))
    from conftest import Linear  # pyright: ignore[reportAttributeAccessIssue]

    count = 0
    for target in sys.argv[1:] or CPUS:
        for case in cases(target):
            count += 1
            if (found := problem(case, Linear)) is not None:
                print(found)
    print(count, "kernels", flush=True)
