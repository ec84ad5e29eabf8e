"""Draws the results of `cpu.py`: ms against M, a panel a shape, gqc, peers and the roof.

python benchmarks/cpu_chart.py [RESULTS.json [CHART.svg]]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes

RESULTS = Path(__file__).parent / "results" / "cpu.json"
OURS = ("gqc int4_g128 bf16", "gqc w4a8_g128 bf16")
"""What is drawn of gqc; without these, all of it."""
STYLES = {"16-bit": "-", "32-bit": "-.", "int8": "--"}
"""Lines by what is multiplied."""
MARKERS = "osv^D<>PX*hp"
Row = dict[str, Any]


def curves(rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    """(M, ms) by peer, each at the group that is fastest."""
    best: dict[str, dict[int, float]] = defaultdict(dict)
    for row in rows:
        known = best[row["peer"]].get(row["m"], float("inf"))
        best[row["peer"]][row["m"]] = min(known, row["median_ms"])
    return {name: sorted(points.items()) for name, points in best.items()}


def roofs(document: dict[str, Any], rows: list[Row]) -> dict[str, list[tuple[int, float]]]:
    """(M, least ms) by numerics: of reading four bits a weight, or of multiplying."""
    roof, (n, k) = document["roof"], (rows[0]["n"], rows[0]["k"])
    read = n * k / 2 / roof["read_huge_pages_gbs"]["median"] / 1e6
    found = {}
    for numerics, dot in (("16-bit", "bf16"), ("32-bit", "f32"), ("int8", "int8")):
        peak = roof.get(f"dot_{dot}_gflops") or roof["dot_f32_gflops"]
        found[numerics] = [
            (m, max(read, 2 * m * n * k / peak / 1e6)) for m in sorted({row["m"] for row in rows})
        ]
    return found


def looks(names: list[str], peers: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """How each line is drawn: gqc in black and thick, peers in colours."""
    colours = pyplot.get_cmap("tab20").colors  # pyright: ignore[reportAttributeAccessIssue]
    found = {}
    for i, name in enumerate(names):
        ours = name.startswith("gqc ")
        found[name] = {
            "color": "black" if ours else colours[i % len(colours)],
            "linewidth": 2.2 if ours else 1,
            "linestyle": STYLES[peers[name]["numerics"]],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4,
        }
    return found


def panel(axes: Axes, document: dict[str, Any], rows: list[Row], names: list[str]) -> None:
    lines = curves(rows)
    for name, look in looks(names, document["peers"]).items():
        if name in lines:
            axes.plot(*zip(*lines[name], strict=True), label=name, **look)
    for numerics, points in roofs(document, rows).items():
        label = f"roof, {numerics}"
        axes.plot(*zip(*points, strict=True), STYLES[numerics], color="red", alpha=0.6, label=label)
    axes.set(xscale="log", yscale="log", xlabel="M", ylabel="ms")
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set_title(f"N×K = {rows[0]['n']}×{rows[0]['k']}")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)


def draw(document: dict[str, Any], path: Path) -> None:
    by_shape: dict[tuple[int, int], list[Row]] = defaultdict(list)
    for row in document["results"]:
        by_shape[row["n"], row["k"]].append(row)
    measured = sorted({row["peer"] for row in document["results"]})
    ours = [name for name in measured if name.startswith("gqc ")]
    chosen = [name for name in ours if name in OURS] or ours
    names = [*chosen, *(name for name in measured if not name.startswith("gqc "))]
    across = min(2, len(by_shape))
    down = -(-len(by_shape) // across)
    size = (5 * across + 2.5, 4 * down)
    figure, grid = pyplot.subplots(down, across, figsize=size, squeeze=False, layout="constrained")
    for axes, rows in zip(grid.flat, by_shape.values(), strict=False):
        panel(axes, document, rows, names)
    for axes in grid.flat[len(by_shape) :]:
        axes.axis("off")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right center", frameon=False, fontsize=8)
    machine = document["machine"]
    lines = "dashed: int8 activations, dash-dotted: f32"
    figure.suptitle(f"{machine['cpu']}, {machine['threads']} threads; {lines}")
    figure.savefig(path)


def main() -> None:
    source = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    chart = Path(sys.argv[2]) if len(sys.argv) > 2 else source.with_suffix(".svg")
    draw(json.loads(source.read_text()), chart)
    print(chart)


if __name__ == "__main__":
    main()
