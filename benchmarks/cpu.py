"""Linear layers on the CPU: gqc's kernels beside every other library's, and beside the machine.

Each is measured in a process of its own, one after the other, on copies of its weights that no
cache holds together, so what is measured is a model's next layer; read bandwidth is measured beside
each sample. What is not installed is noted and left out. Prints how gqc's times compare with the
best ones of the same numerics; `cpu_chart.py` draws the results.

    python benchmarks/cpu.py --peer-python OTHER/bin/python
    python benchmarks/cpu.py --keep --peers --schemes int4_g128 --shapes 4096x4096 --rows 1 4
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cpu_judgement import print_judgement
from cpu_peers import PEERS
from cpu_roof import roof
from llvmlite import binding
from machine import describe_machine
from rich.console import Console

WORKER = Path(__file__).with_name("cpu_worker.py")
RESULTS = Path(__file__).parent / "results" / "cpu.json"
SHAPES = ("4096x4096", "11008x4096", "4096x14336", "1024x1024")
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
INTEGERS = tuple(
    f"int{bits}_g{group}{suffix}"
    for bits in (1, 2, 3, 4, 8)
    for group in (32, 128)
    for suffix in ("", "_sym")
    if bits > 1 or not suffix
)
SCHEMES = (
    *INTEGERS,
    *("w4a16_mxfp4", "w4a16_nvfp4", "w6a16_mxfp6", "w8a16_mxfp8", "w8a16_mxint8"),
    *("w4a8_g32", "w4a8_g128", "w8a8_g32", "w8a8_g128"),
)
ACTIVATIONS = ("bf16", "f32", "f16")
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1", "THP_MEM_ALLOC_ENABLE": "1"}
"""What makes the C library and torch ask for huge pages, which no peer does by itself; gqc does for
packed weights."""


def names(options: argparse.Namespace) -> Iterator[str]:
    """Everything to measure."""
    yield from options.peers
    for scheme in options.schemes:
        for activation in options.activations:
            yield f"gqc {scheme} {activation}" + (f" {options.target}" if options.target else "")


def python_of(name: str, options: argparse.Namespace) -> str:
    """The interpreter that has a peer's library."""
    chosen = dict(each.split("=", 1) for each in options.python)
    default = sys.executable if name.startswith("gqc ") else options.peer_python
    return chosen.get(name, default)


def measure(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the worker found of one peer, or why it found nothing (`absent`)."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "found.json"
        command = [python_of(name, options), str(WORKER), name, "--output", str(output)]
        for option in ("shapes", "rows", "groups"):
            command += [f"--{option}", *map(str, getattr(options, option))]
        for option in ("threads", "repeats", "error_shape"):
            command += [f"--{option.replace('_', '-')}", str(getattr(options, option))]
        environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
        environment |= HUGE_PAGES if options.huge_pages else {}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode or not output.exists():
            return {"peer": {"absent": reason(done)}, "results": [], "errors": []}
        return json.loads(output.read_text())


def reason(done: subprocess.CompletedProcess[str]) -> str:
    """The last line that a worker wrote before it failed."""
    lines = done.stderr.strip().splitlines()
    return lines[-1][:300] if lines else f"the process ended with status {done.returncode}"


def key(row: dict[str, Any]) -> tuple:
    return tuple(row.get(part) for part in ("peer", "n", "k", "group", "m"))


def merge(document: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    """Put what was found into a document, in place of what was known of the same cases."""
    document["peers"][name] = found["peer"]
    for part in ("results", "errors"):
        rows = {key(row): row for row in (*document[part], *found[part])}
        document[part] = list(rows.values())


def machine(threads: int) -> dict[str, Any]:
    """The machine, its vector instructions, and how busy it is."""
    features = binding.get_host_cpu_features()
    return describe_machine() | {
        "threads": threads,
        "llvm": ".".join(map(str, binding.llvm_version_info)),
        "llvm_cpu": binding.get_host_cpu_name(),
        "features": sorted(f for f, on in features.items() if on and f.startswith(("avx", "fma"))),
        "load_average": os.getloadavg()[0],
    }


def save(document: dict[str, Any], path: Path) -> None:
    """The document, a row of results a line."""
    parts = {name: json.dumps(part, indent=1) for name, part in document.items()}
    for name in ("results", "errors"):
        rows = ",\n".join(f"  {json.dumps(row)}" for row in document[name])
        parts[name] = f"[\n{rows}\n ]"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = ",\n".join(f' "{name}": {part}' for name, part in parts.items())
    path.write_text(f"{{\n{text}\n}}\n")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="NxK")
    parser.add_argument("--rows", nargs="+", type=int, default=ROWS, help="M")
    parser.add_argument("--schemes", nargs="*", default=SCHEMES, help="gqc's")
    parser.add_argument("--activations", nargs="+", default=ACTIVATIONS, choices=ACTIVATIONS)
    parser.add_argument("--target", default="", help="gqc's, where it is not this CPU (cpu_avx2)")
    parser.add_argument("--peers", nargs="*", default=[*PEERS], choices=PEERS, metavar="PEER")
    parser.add_argument("--groups", nargs="+", type=int, default=[32, 128], help="of peers")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--error-shape", default="4096x4096", help="that errors are taken at")
    parser.add_argument("--peer-python", default=sys.executable, help="the peers' interpreter")
    parser.add_argument(
        "--python", nargs="*", default=[], metavar="PEER=PYTHON", help="one peer's interpreter"
    )
    parser.add_argument("--huge-pages", action="store_true", help="give all memory huge pages")
    parser.add_argument("--keep", action="store_true", help="keep other rows of the output")
    parser.add_argument("--output", type=Path, default=RESULTS)
    return parser.parse_args()


def main() -> None:
    options, console = arguments(), Console(width=120)
    document: dict[str, Any] = {"peers": {}, "results": [], "errors": []}
    if options.keep and options.output.exists():
        document |= json.loads(options.output.read_text())
    settings = {"huge_pages": options.huge_pages, "repeats": options.repeats}
    document = {
        "machine": machine(options.threads) | settings,
        "roof": roof(options.threads),
        **{part: document[part] for part in ("peers", "results", "errors")},
    }
    for name in names(options):
        with console.status(name):
            found = measure(name, options)
        if absent := found["peer"].get("absent"):
            console.print(f"{name} is left out: {absent}", highlight=False)
        merge(document, name, found)
        save(document, options.output)
    print_judgement(document, console)


if __name__ == "__main__":
    main()
