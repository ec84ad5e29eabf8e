"""Static figures of gqc's block-scaled kernels for sm_100 beside those of Triton's tutorial kernel.

Compiles both offline, so it runs anywhere; prints a table and writes it as JSON. Figures are of the
assembler and the disassembly, and `share` is the part of the roofline that
`gqc.codegen.triton.roofline` predicts: a bound by which kernels are compared, no measurement.

    python benchmarks/block_scaled_static.py [--python OTHER/bin/python]
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from layers import layer
from rich.console import Console
from rich.table import Table

from gqc.codegen.triton import compile_many
from gqc.codegen.triton.machines import MACHINES
from gqc.codegen.triton.offline import KernelArtifacts, artifacts, run_worker
from gqc.codegen.triton.roofline import estimate
from gqc.codegen.triton.source import Array, Source
from gqc.dialects import tile
from gqc.errors import GqcError
from gqc.tools.gqc_opt import tile_kernels
from gqc.tools.inspect import Inspection

SIZE = 8192
"""M, N and K."""

TARGET = "sm_100"
PEER = Path(__file__).with_name("block_scaled_peer.py")
RESULTS = Path(__file__).parent / "results" / "block_scaled_static.json"


@dataclass(frozen=True)
class Product:
    """One row: what the peer needs to know of a scheme. The types are Triton's names."""

    codes: str
    scales: str
    format: str
    pack: int
    block: int
    step: int
    matrix: str


PRODUCTS = {
    "mxfp8": Product("fp8e4nv", "u8", "e4m3", 1, 32, 128, "mxf8f6f4"),
    "mxfp4": Product("u8", "u8", "e2m1", 2, 32, 256, "mxf4"),
    "nvfp4": Product("u8", "fp8e4nv", "e2m1", 2, 16, 256, "mxf4nvf4"),
}
TILE = (128, 256)
STAGES = 4
PEER_WARPS = (4, 8)
"""The tutorial's, which are Triton's default, and gqc's."""


@dataclass(frozen=True)
class Figures:
    """registers: of a thread. shared: bytes. tensor_memory: columns. loop: instructions of one step
    of the main loop. instructions: of the whole kernel. waits: for barriers in the loop, for each
    matrix instruction there. share: of the roofline, predicted."""

    scheme: str
    kernel: str
    triton: str
    warps: int
    registers: int
    spills: int
    shared: int
    tensor_memory: int
    loop: int
    instructions: int
    waits: float
    share: float


def figures(scheme: str, kernel: str, built: KernelArtifacts) -> Figures:
    predicted = estimate(built, SIZE)
    return Figures(
        *(scheme, kernel, built.triton, built.source.warps),
        *(built.registers, built.spills, built.shared, built.tensor_memory),
        *(len(built.main_loop), len(built.instructions)),
        Inspection(built, predicted, []).waits_per_matrix,
        predicted.share,
    )


def our_kernel(scheme: str) -> tile.KernelOp:
    """The matmul of the bucket for any number of rows."""
    return list(tile_kernels(layer(SIZE, SIZE, scheme, TARGET)))[-1]


def peer_source(product: Product, warps: int) -> str:
    """The peer with its constants, for the worker that compiles."""
    (bm, bn), bk = TILE, product.step
    groups = bk // product.block // 4
    descriptors = {
        "x": (product.codes, (bm, bk // product.pack)),
        "x_scale": (product.scales, (1, bm // 128, groups, 2, 256)),
        "w": (product.codes, (bn, bk // product.pack)),
        "scale": (product.scales, (1, bn // 128, groups, 2, 256)),
        "y": ("bf16", TILE),
    }
    sizes = {"M": SIZE, "K": SIZE, "BM": bm, "BN": bn, "BK": bk, "STAGES": STAGES}
    constants = {"PACK": product.pack, "BLOCK": product.block, "FORMAT": product.format, **sizes}
    signature = {n: f"tensordesc<{t}{[*shape]}>" for n, (t, shape) in descriptors.items()}
    order = ("M", "K", "FORMAT", "PACK", "BLOCK", "BM", "BN", "BK", "STAGES")
    signature |= dict.fromkeys(order, "constexpr")
    return (
        f"{PEER.read_text()}\n\nSIGNATURE = {signature}\n"
        f"CONSTANTS = {constants}\nOPTIONS = {{'num_warps': {warps}}}\n"
    )


def peers(scheme: str, python: str) -> list[KernelArtifacts]:
    """The peer as each number of warps makes it."""
    product = PRODUCTS[scheme]
    jobs = [
        {"source": peer_source(product, warps), "target": MACHINES[TARGET].triton}
        for warps in PEER_WARPS
    ]
    results = run_worker(jobs, python)
    for result in results:
        if "error" in result:
            raise GqcError(f"the peer's {scheme} does not compile: {result['error']}")
    codes = Array(1, (SIZE, SIZE // product.pack))
    scales = Array(1, (SIZE, SIZE // product.block))
    arrays = {"x": codes, "x_scale": scales, "w": codes, "scale": scales}
    arrays["y"] = Array(2, (SIZE, SIZE))
    return [
        artifacts(
            Source(
                *("block_scaled_peer", TARGET, product.matrix, arrays, TILE),
                *(SIZE, product.step, warps, {}),
            ),
            TARGET,
            result,
        )
        for warps, result in zip(PEER_WARPS, results, strict=True)
    ]


def compare(schemes: list[str], python: str = sys.executable) -> list[Figures]:
    """Ours, then the peer at each number of warps, for each scheme."""
    built = compile_many([(our_kernel(scheme), TARGET) for scheme in schemes], python)
    rows = []
    for scheme, ours in zip(schemes, built, strict=True):
        rows.append(figures(scheme, "gqc", ours))
        rows += [figures(scheme, "tutorial", peer) for peer in peers(scheme, python)]
    return rows


def table(rows: list[Figures]) -> Table:
    shown = Table(title=f"{TARGET}, M = N = K = {SIZE}, tiles of {TILE[0]}×{TILE[1]}")
    for name in asdict(rows[0]):
        shown.add_column(name, justify="left" if name in ("scheme", "kernel") else "right")
    for row in rows:
        values = asdict(row).values()
        shown.add_row(*[f"{v:.3f}" if isinstance(v, float) else str(v) for v in values])
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", action="append", help="another Python, with another Triton")
    rows = []
    for python in [sys.executable, *(parser.parse_args().python or [])]:
        rows += compare(list(PRODUCTS), python)
    Console(width=140).print(table(rows))
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
