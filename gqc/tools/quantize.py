"""`gqc quantize`: a dense checkpoint in, a quantized one out, one weight in memory at a time."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.checkpoints.quantizing import Quantizing
from gqc.checkpoints.save import WRITERS, save
from gqc.errors import GqcError
from gqc.schemes import SchemeLike
from gqc.tools.files import Contents, plan_of

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
SIZE = re.compile(r"(\d+(?:\.\d+)?) *([KMGT]?)B?", re.IGNORECASE)


@dataclass(frozen=True)
class Quantized:
    """What was done: the plan, bytes read and seconds taken."""

    plan: Contents
    bytes: int
    seconds: float

    def __str__(self) -> str:
        rate = self.bytes / self.seconds / 1e9
        return f"{self.bytes / 1e9:.2f} GB of weights in {self.seconds:.1f} s: {rate:.2f} GB/s"


def plan(
    path: Path, schemes: Sequence[str], ignore: Sequence[str], lm_head: bool, format: str
) -> Quantizing:
    """What is to be done, checked. Raises GqcError as `Quantizing` and `open_checkpoint` do."""
    if format not in WRITERS:
        raise GqcError(f"unknown format {format!r}: choose one of {', '.join(WRITERS)}")
    scheme = scheme_map(schemes)
    return Quantizing(open_checkpoint(path), scheme, ignore, lm_head, WRITERS[format])


def run(
    source: Quantizing, folder: Path, format: str, max_shard: str, progress: bool | None = None
) -> Quantized:
    """Write what was planned. Raises GqcError as `gqc.save` does."""
    start = time.monotonic()
    save(source, folder, format, size_of(max_shard), progress)
    total = sum(source.bytes_of(name) for name in source.names())
    return Quantized(plan_of(source), total, time.monotonic() - start)


def scheme_map(texts: Sequence[str]) -> dict[str, SchemeLike]:
    """Schemes by pattern, of entries `pattern=scheme` or `scheme` alone, which is for all layers.

    The text of a `Scheme` has a space before its first `=`; a pattern has none.
    """
    result: dict[str, SchemeLike] = {}
    for text in texts:
        head, found, scheme = text.partition("=")
        pattern, value = ("*", text) if not found or " " in head else (head, scheme)
        if pattern in result:
            raise GqcError(f"two schemes for {pattern!r}: {result[pattern]} and {value}")
        result[pattern] = value
    rest = result.pop("*", None)  # last, for the first match counts
    return result if rest is None else {**result, "*": rest}


def size_of(text: str) -> int:
    """Bytes that `5GB`, `500 MB` or `1000000` says. Raises GqcError on anything else."""
    match = SIZE.fullmatch(text.strip())
    size = int(float(match[1]) * UNITS[match[2].upper()]) if match else 0
    if size < 1:
        raise GqcError(f"{text!r} is no size: write 5GB, 500MB, …")
    return size
