"""Every kernel for every GPU, compiled offline and judged by the gates, with its static figures.

Kernels are those of a layer of 4096×4096 under each pair of block-scaled formats and `int4_g128`:
matmuls of every bucket of rows, and quantizers, alone and fused behind RMSNorm and SiLU·mul. What
is in the results and has not changed is not compiled again. The tests compile what is missing
there, a few kernels at most: after a change to many, run this and commit the results.

    python benchmarks/gates.py [--python OTHER/bin/python]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import resources
from itertools import permutations
from pathlib import Path
from typing import Any

from layers import layer
from rich.console import Console
from rich.progress import track

from gqc.codegen.triton import compile_many, emit
from gqc.codegen.triton.gates import check
from gqc.codegen.triton.machines import MACHINES
from gqc.codegen.triton.offline import KernelArtifacts
from gqc.codegen.triton.roofline import estimate
from gqc.dialects import gq, tile
from gqc.native import NATIVE
from gqc.schemes import MX_ELEMENTS, PRESETS, ROUNDINGS, WEIGHTS
from gqc.targets import ANY
from gqc.tools.gqc_opt import tile_kernels

SIZE = 4096
"""N and K, and M of the bucket for any number of rows."""

RESULTS = Path(__file__).parent / "results" / "gates.json"
JUDGES = ("gates.py", "loads.py", "disassembly.py", "machines.py")
"""What a verdict depends on beside the kernel, in `gqc.codegen.triton`."""

BATCH = 32

EXCEPTIONS = (
    # Triton 3.9 reads w as the wider codes lie that are made of it.
    (r"sm_120 matmul_bf16_f\dE\dM\w+_f4E2M1FN_", "128-bit loads: w by 64 bits, could be 128"),
)
"""Gates that kernels may miss, by their names."""

SCHEMES = [
    "int4_g128",
    *(
        name
        for name in PRESETS
        if not name.endswith((*filter(None, ROUNDINGS), "_static")) and name not in WEIGHTS
    ),
    *("mxfp8_rceil", "mxfp6_ceil", "mxfp4_even"),
]
"""Of `WEIGHTS`, under f32 scales, tests/codegen/triton/test_offline.py compiles some: Triton 3.9
fails for gfx950 where an f32 scale is for 64 elements, of any format, and rows are few."""

PAIRS = [f"{x}_{w}" for x, w in permutations(MX_ELEMENTS, 2)]
FUSED = ("mxfp8", "mxfp4")
SCALED = {target for target, *_ in NATIVE}


@dataclass(frozen=True)
class Case:
    """One kernel for one target: `name` is unique."""

    target: str
    source: str
    rows: int

    @property
    def name(self) -> str:
        return f"{self.target} {self.source.split(maxsplit=3)[2]}"

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.source.encode()).hexdigest()[:16]


def kernels_of(scheme: str, target: str, producer: str) -> Iterator[tuple[tile.KernelOp, int]]:
    """Kernels of a layer, each with the rows that it is made for."""
    module = layer(SIZE, SIZE, scheme, target, bias=True, producer=producer)
    rows = {
        kernel.root_reference.data: bucket
        for launch in module.walk()
        if isinstance(launch, gq.LaunchOp)
        for kernel, bucket in zip(launch.kernels, launch.rows.get_values(), strict=True)
    }
    for kernel in tile_kernels(module):
        bucket = rows[kernel.sym_name.data]
        yield kernel, SIZE if bucket == ANY else bucket


@cache
def cases() -> list[Case]:
    """Every kernel for every target, without those that only bear another name."""
    found: dict[tuple[str, str], Case] = {}
    for target in MACHINES:
        # Without a matrix unit for any, kernels of a pair are those of its two formats.
        schemes = [s for s in SCHEMES if s not in PAIRS or target in SCALED]
        made = [(scheme, "") for scheme in schemes]
        made += [(scheme, producer) for scheme in FUSED for producer in ("norm", "silu")]
        for scheme, producer in made:
            for kernel, rows in kernels_of(scheme, target, producer):
                key = target, kernel.sym_name.data
                if key not in found:
                    found[key] = Case(target, emit(kernel), rows)
    return [*found.values()]


# Results


def judged_by() -> str:
    """Digest of the gates."""
    folder = resources.files("gqc.codegen.triton")
    texts = [(folder / name).read_bytes() for name in JUDGES]
    return hashlib.sha256(b"\0".join(texts)).hexdigest()[:16]


def known(version: str) -> dict[str, Any]:
    """What is kept of one Triton: results by the names of `kernels`, and whether they are
    `complete`. Nothing if the gates have changed since."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return document.get("triton", {}).get(version, {}) if is_current(document) else {}


def is_current(document: dict[str, Any]) -> bool:
    return document.get("judged_by") == judged_by()


def missing(wanted: list[Case], found: dict[str, dict[str, Any]]) -> list[Case]:
    """Cases that are not in results, or not as they are now."""
    return [case for case in wanted if found.get(case.name, {}).get("source") != case.digest]


def result(case: Case, built: KernelArtifacts) -> dict[str, Any]:
    """What is kept of a kernel: its figures, the predicted share of the roofline, missed gates."""
    loop = len(built.main_loop)
    share = round(estimate(built, case.rows).share, 3)
    figures = {"registers": built.registers, "shared": built.shared, "loop": loop, "share": share}
    faults = check(built)
    return {"source": case.digest, **figures, **({"missed": faults} if faults else {})}


def judge(cases: list[Case], python: str) -> dict[str, dict[str, Any]]:
    """Compile cases and judge them."""
    built = compile_many([(case.source, case.target) for case in cases], python)
    return {case.name: result(case, one) for case, one in zip(cases, built, strict=True)}


def missed(name: str, kept: dict[str, Any]) -> list[str]:
    """The gates that a result misses and may not."""
    allowed = [fault for pattern, fault in EXCEPTIONS if re.match(pattern, name)]
    return [fault for fault in kept.get("missed", []) if fault not in allowed]


def save(version: str, found: dict[str, dict[str, Any]], complete: bool) -> None:
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    if not is_current(document):
        document = {"judged_by": judged_by(), "triton": {}}
    kernels = dict(sorted(found.items()))
    document["triton"][version] = {"complete": complete, "kernels": kernels}
    text = json.dumps(document, indent=1)
    text = re.sub(r"\n {5,}", " ", text).replace("\n    }", " }")
    RESULTS.write_text(text + "\n")


def triton_of(python: str) -> str:
    """Version of a Python's Triton."""
    source = next(iter(kernels_of("int4_g128", "sm_90", "")))[0]
    return compile_many([(source, "sm_90")], python)[0].triton


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=sys.executable, help="one with the Triton to use")
    python = parser.parse_args().python
    console, wanted, version = Console(width=160), cases(), triton_of(python)
    names = {case.name for case in wanted}
    kernels = known(version).get("kernels", {})
    found = {name: kept for name, kept in kernels.items() if name in names}
    todo = missing(wanted, found)
    for start in track(range(0, len(todo), BATCH), f"Triton {version}", console=console):
        found |= judge(todo[start : start + BATCH], python)
        save(version, found, start + BATCH >= len(todo))
    faults = {name: faults for name, kept in found.items() if (faults := missed(name, kept))}
    for name, texts in faults.items():
        console.print(f"{name}: {'; '.join(texts)}")
    console.print(f"{len(found)} kernels with Triton {version}, {len(faults)} miss a gate")


if __name__ == "__main__":
    main()
