"""How gqc's times on a CPU compare with others' and with what the machine can do.

python benchmarks/cpu_judgement.py [RESULTS.json]
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from rich.console import Console
from rich.table import Table

OURS = "gqc "
DENSE = {"16-bit": "torch bf16", "int8": "torch bf16", "32-bit": "torch f32"}
"""The dense matmul that each numerics is held against."""
EQUALS = {"16-bit": ("16-bit", "32-bit"), "32-bit": ("32-bit",), "int8": ("int8",)}
"""Those of peers that are no less exact, by gqc's; int8 ones are compared with each other."""
FEW_ROWS, SOME_ROWS, MANY_ROWS = 4, 16, 64
Row = dict[str, Any]


@dataclass(frozen=True)
class Judged:
    """One time of gqc's, in milliseconds, beside the best peer of the same numerics.

    share: of the read bandwidth in packed bytes, at one row; share_small: of that in small pages,
    which is what peers' memory is in; gqc asks for huge ones. dense: how many times as fast as the
    dense matmul (`DENSE`), from `MANY_ROWS` on. of_four_bits: time over that of the fastest of
    gqc's formats of four bits with the same activations, up to `FEW_ROWS`; of_bytes: the same of
    bytes.
    """

    row: Row
    numerics: str
    peer: Row | None
    share: float | None
    share_small: float | None
    dense: float | None
    of_four_bits: float | None
    of_bytes: float | None

    @property
    def ratio(self) -> float | None:
        """How many times as fast as the best peer."""
        return over(self.peer, self.row, "median_ms")


def judge(document: dict[str, Any]) -> list[Judged]:
    """Each of gqc's times, by shape, numerics, name and rows."""
    by_case: dict[tuple, list[Row]] = defaultdict(list)
    for row in document["results"]:
        by_case[row["n"], row["k"], row["m"]].append(row)
    judged = [
        compared(row, rows, document["peers"])
        for rows in by_case.values()
        for row in rows
        if row["peer"].startswith(OURS)
    ]
    return sorted(
        judged,
        key=lambda j: (-j.row["n"] * j.row["k"], j.numerics, j.row["peer"], j.row["m"]),
    )


def compared(row: Row, rows: list[Row], peers: dict[str, Any]) -> Judged:
    """One of gqc's times beside all those of the same case.

    A peer whose codes have fewer bits reads less, and is not compared with.
    """
    ours, m = peers[row["peer"]], row["m"]
    equals = [
        other
        for other in rows
        if not other["peer"].startswith(OURS)
        and peers[other["peer"]]["numerics"] in EQUALS[ours["numerics"]]
        and peers[other["peer"]]["bits"] >= ours["bits"]
    ]
    dense = [other for other in rows if other["peer"] == DENSE[ours["numerics"]]]
    four_bits = [
        other
        for other in rows
        if other["peer"].startswith(OURS)
        and other["peer"].split()[2:] == row["peer"].split()[2:]
        and peers[other["peer"]]["numerics"] == ours["numerics"]
        and peers[other["peer"]]["bits"] == 4
    ]
    read = row["bytes"] / row["median_ms"] / 1e6
    four = fastest(four_bits) if m <= FEW_ROWS and ours["bits"] <= 4 else None
    return Judged(
        row,
        ours["numerics"],
        fastest(equals),
        share=read / row["read_gbs"] if m == 1 else None,
        share_small=read / row["read_small_pages_gbs"] if m == 1 else None,
        dense=over(fastest(dense), row, "median_ms") if m >= MANY_ROWS else None,
        of_four_bits=over(row, four, "median_ms"),
        of_bytes=over(row, four, "bytes"),
    )


def over(row: Row | None, other: Row | None, part: str) -> float | None:
    return None if row is None or other is None else row[part] / other[part]


def fastest(rows: Iterable[Row]) -> Row | None:
    return min(rows, key=lambda row: row["median_ms"], default=None)


def means(judged: list[Judged]) -> Iterator[tuple[str, str, float]]:
    """(numerics, gqc's name, geometric mean of the ratios up to `SOME_ROWS`), all names last."""
    ratios: dict[tuple[str, str], list[float]] = defaultdict(list)
    for each in judged:
        if each.ratio is not None and each.row["m"] <= SOME_ROWS:
            ratios[each.numerics, each.row["peer"]].append(each.ratio)
            ratios[each.numerics, "all"].append(each.ratio)
    for (numerics, name), values in sorted(ratios.items(), key=lambda i: (i[0][1] == "all", i[0])):
        yield numerics, name, geometric_mean(values)


# Printing

LEAST = {
    "ratio": {"16-bit": 1.0, "32-bit": 1.0, "int8": 1.0},
    "share": {"16-bit": 0.9, "32-bit": 0.9, "int8": 0.0},
    "dense": {"16-bit": 0.95, "32-bit": 0.95, "int8": 1.3},
    "mean": {"16-bit": 1.3, "32-bit": 1.3, "int8": 1.0},
}
"""What is aimed at, by numerics; what is below is printed red."""


def cell(value: float | None, aim: str, numerics: str, text: str) -> str:
    if value is None:
        return ""
    shown = format(value, text)
    return shown if value >= LEAST[aim][numerics] else f"[red]{shown}[/red]"


def label(row: Row) -> str:
    return f"{row['peer']} g{row['group']}" if row["group"] else row["peer"]


def print_judgement(document: dict[str, Any], console: Console) -> None:
    judged = judge(document)
    table = Table(title="ms, and times as fast as the best peer of the same numerics")
    for column in ("layer", "x", "gqc", "M", "ms", "best peer", "ms", "ratio", "read", "dense"):
        table.add_column(column, justify="right" if column not in ("gqc", "best peer") else "left")
    table.add_column("÷ 4 bits", justify="right")
    for j in judged:
        row, peer = j.row, j.peer
        share = cell(j.share, "share", j.numerics, ".0%")
        share += "" if j.share_small is None else f" / {j.share_small:.0%}"
        four = "" if j.of_four_bits is None else f"{j.of_four_bits:.2f} ({j.of_bytes:.2f} B)"
        table.add_row(
            f"{row['n']}×{row['k']}",
            j.numerics,
            row["peer"].removeprefix(OURS),
            str(row["m"]),
            f"{row['median_ms']:.3f}",
            label(peer) if peer else "",
            f"{peer['median_ms']:.3f}" if peer else "",
            cell(j.ratio, "ratio", j.numerics, ".2f"),
            share,
            cell(j.dense, "dense", j.numerics, ".2f"),
            four,
        )
    console.print(table)
    for numerics, name, mean in means(judged):
        text = cell(mean, "mean", numerics, ".2f")
        console.print(f"{numerics}, {name}, M ≤ {SOME_ROWS}: {text}× the best peer")
    print_errors(document, console)


def print_errors(document: dict[str, Any], console: Console) -> None:
    table = Table("", "error", title="greatest error over the root mean square, against float64")
    for row in sorted(document["errors"], key=lambda row: row["error"]):
        table.add_row(label(row), f"{row['error']:.2e}")
    console.print(table)


if __name__ == "__main__":
    default = Path(__file__).parent / "results" / "cpu.json"
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else default
    print_judgement(json.loads(path.read_text()), Console(width=140))
