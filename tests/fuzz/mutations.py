"""Damaged dumps for gqc-opt: `python tests/fuzz/mutations.py SEED COUNT`.

Each mutation of a lit test's module is given to one of the command lines of such tests. gqc-opt
must read it, or end with status 1 and a message: never a traceback, an internal error, or a hang.
"""

from __future__ import annotations

import io
import os
import random
import re
import shlex
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

LIT = Path(__file__).parents[1] / "lit"
SECONDS = 20
"""That reading one file takes of the CPU, at most."""

COMMANDS = (["-t", "triton"], ["-t", "llvm"], ["--print-op-generic"], ["-p", "dce"])
"""Command lines beside those of the tests."""

TOKEN = re.compile(rb'"[^"\n]*"|[%@!#^]?[A-Za-z_][\w.$]*|%\d+|-?\d+(?:\.\d+)?|->|\s+|.', re.S)


@cache
def corpus() -> list[tuple[bytes, list[str]]]:
    """Modules, each with the arguments of its test."""
    found = []
    for path in sorted(LIT.rglob("*.mlir")):
        text = path.read_bytes()
        runs = re.findall(rb"RUN: gqc-opt ([^|\n]*)", text)
        module = re.sub(rb"^//.*\n", b"", text, flags=re.M)
        for run in [run for run in runs if b"%{" not in run][:1]:
            words = shlex.split(run.decode())
            found.append((module, [w for w in words if not w.startswith(("%s", "ptx"))]))
    return found + dumps()


TARGETS = {
    "cpu_avx2": ("int4_g32", "w4a8_g32", "mxfp8"),
    "cpu_amx": ("int4_g64", "w4a8_g32", "nvfp4"),
    "sm_100": ("int3_g64", "nvfp4", "mxfp8_mxfp4"),
    "gfx950": ("w4a16_mxfp4", "mxfp4"),
}
"""Schemes of the dumps, by target."""


def dumps() -> list[tuple[bytes, list[str]]]:
    """What passes leave of two layers, and each kernel of them, with the pass or emitter to come.

    The layers are of bf16, with a norm before them and SiLU between them.
    """
    from gqc.dialects.text import parse_ir, print_ir
    from gqc.dialects.tile import KernelOp
    from gqc.passes.pipeline import pipeline, run_stages

    found, passes = [], ["print"]
    for target, schemes in TARGETS.items():
        emitter = ["-t", "llvm" if target.startswith("cpu") else "triton"]
        for scheme in schemes:
            texts: list[tuple[str, bytes]] = []
            stages = pipeline((f"*={scheme}",), target)
            names = {stage.name for stage in stages}

            def after(name: str, module: Any, names: set[str] = names, texts: list = texts) -> None:
                if name not in names:
                    texts.append((name, print_ir(module).encode()))

            module = parse_ir(LAYERS)
            run_stages(module, stages, after)
            passes = [f"{name}{{target={target}}}" for name, _ in texts[1:]]
            plain = [name for name, _ in texts[1:]]
            for (_, text), targeted, name in zip(texts, passes, plain, strict=False):
                takes = name in ("legalize", "assign-layouts", "split-m-buckets")
                takes = takes or name.startswith(("lower-quantizers", "lower-to-tile"))
                schemes_ = f'{name}{{schemes="*={scheme}"}}' if "quantize-" in name else name
                found.append((text, ["-p", targeted if takes else schemes_]))
            kernels = [op for op in module.ops if isinstance(op, KernelOp)]
            found += [(print_ir(kernel).encode(), emitter) for kernel in kernels]
    return found


LAYERS = """
func.func @forward(%x : tensor<?x128xbf16> {fx.dims = ["batch"]}) -> tensor<?x64xbf16> {
  %g = gq.weight @norm.weight : tensor<128xbf16>
  %n = fx.call "aten.rms_norm.default"(%x, [128], %g, 1.0e-5 : f64)
    : (tensor<?x128xbf16>, tensor<128xbf16>) -> tensor<?x128xbf16>
  %w = gq.weight @up.weight : tensor<192x128xbf16>
  %b = gq.weight @up.bias : tensor<192xbf16>
  %y = fx.call "aten.linear.default"(%n, %w, %b)
    : (tensor<?x128xbf16>, tensor<192x128xbf16>, tensor<192xbf16>) -> tensor<?x192xbf16> loc("up")
  %s = fx.call "aten.silu.default"(%y) : (tensor<?x192xbf16>) -> tensor<?x192xbf16>
  %v = gq.weight @down.weight : tensor<64x192xbf16>
  %z = fx.call "aten.linear.default"(%s, %v)
    : (tensor<?x192xbf16>, tensor<64x192xbf16>) -> tensor<?x64xbf16> loc("down")
  func.return %z : tensor<?x64xbf16>
}
"""


@cache
def tokens_of_all() -> list[bytes]:
    """Every token of the corpus."""
    return sorted({token for module, _ in corpus() for token in TOKEN.findall(module)})


def damage(text: bytes, r: random.Random) -> bytes:
    """The text with one to four faults."""
    for _ in range(r.choice([1, 1, 1, 1, 2, 3])):
        text = r.choice(FAULTS)(text, r)
    return text


def change_byte(text: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(text) + 1)
    return text[:at] + bytes([r.randrange(256)]) + text[at + r.randrange(2) :]


def cut(text: bytes, r: random.Random) -> bytes:
    at = r.randrange(len(text) + 1)
    return text[:at] + text[at + r.choice([1, 10, 100, len(text)]) :]


def on_lines(change: Callable[[list[bytes], random.Random], None]) -> Callable:
    """A fault of the list of lines."""

    def fault(text: bytes, r: random.Random) -> bytes:
        lines = text.splitlines(keepends=True)
        if lines:
            change(lines, r)
        return b"".join(lines)

    return fault


def move_line(lines: list[bytes], r: random.Random) -> None:
    lines.insert(r.randrange(len(lines)), lines.pop(r.randrange(len(lines))))


def drop_line(lines: list[bytes], r: random.Random) -> None:
    lines.pop(r.randrange(len(lines)))


def copy_line(lines: list[bytes], r: random.Random) -> None:
    lines.insert(r.randrange(len(lines)), r.choice(lines))


def take_line(lines: list[bytes], r: random.Random) -> None:
    """A line of another module."""
    others = r.choice(corpus())[0].splitlines(keepends=True)
    lines.insert(r.randrange(len(lines)), r.choice(others))


def change_token(text: bytes, r: random.Random) -> bytes:
    tokens = TOKEN.findall(text)
    if tokens:
        places = [i for i, token in enumerate(tokens) if not token.isspace()]
        new = r.choice([*tokens, *r.sample(tokens_of_all(), 20), b"", b"0", b"-1", b"99999999999"])
        tokens[r.choice(places or [0])] = new
    return b"".join(tokens)


FAULTS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    *(change_byte, cut, change_token, change_token, change_token),
    *map(on_lines, (move_line, drop_line, copy_line, take_line)),
)


class Hang(BaseException):
    """Reading a file took longer than `SECONDS`."""


@contextmanager
def limited() -> Iterator[None]:
    """Raise Hang if what is done takes longer than `SECONDS`."""

    def stop(*_: object) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(frozen=True)
class Outcome:
    """How gqc-opt ended: `read`, `refused`, or a fault of its own, and what it said."""

    kind: str
    said: str = ""

    @property
    def is_fault(self) -> bool:
        return self.kind not in ("read", "refused")


def run(arguments: list[str], path: str) -> Outcome:
    """Run gqc-opt, in this process, on a file."""
    from gqc.tools.gqc_opt import main

    errors = io.StringIO()
    try:
        with limited(), redirect_stdout(io.StringIO()), redirect_stderr(errors):
            main(args=[path, *arguments])
    except SystemExit as end:
        said = str(end.code)
        if end.code is None or end.code == 0:
            return Outcome("read")
        if not said.startswith("gqc-opt: "):
            return Outcome("status", f"{said} {errors.getvalue()}")
        return Outcome("internal" if "internal error" in said else "refused", said)
    except Hang:
        return Outcome("hang")
    except BaseException as error:  # whatever escapes would be a traceback
        return Outcome("traceback", f"{type(error).__name__}: {error}")
    return Outcome("read")


def attempt(seed: int, folder: Path) -> tuple[Outcome, list[str], Path]:
    """One mutation; the file is left in the folder if it shows a fault."""
    r = random.Random(seed)
    text, arguments = r.choice(corpus())
    if r.random() < 0.3:
        arguments = r.choice([*COMMANDS, r.choice(corpus())[1]])
    path = folder / f"{seed}.mlir"
    path.write_bytes(damage(text, r))
    outcome = run(arguments, str(path))
    if not outcome.is_fault:
        path.unlink()
    return outcome, arguments, path


def main(seed: int, count: int) -> int:
    """Try mutations, print the faults, and return how many there are."""
    folder, ends = Path(tempfile.mkdtemp(prefix="mutations-")), Counter[str]()
    for each in range(seed, seed + count):
        outcome, arguments, path = attempt(each, folder)
        ends[outcome.kind] += 1
        if outcome.is_fault:
            print(each, outcome.kind, path, *arguments, outcome.said, sep=" | ", flush=True)
    print(dict(ends))
    return sum(n for kind, n in ends.items() if kind not in ("read", "refused"))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(*map(int, sys.argv[1:3])) > 0)
