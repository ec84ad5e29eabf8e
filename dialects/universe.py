"""What gqc adds to xDSL's tools: found by `xdsl-opt` through the `xdsl.universe` entry point."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from xdsl.ir import Dialect
from xdsl.universe import Universe

from gqc.passes import PASSES


def dialect(module: str, name: str) -> Callable[[], Dialect]:
    """A dialect, imported when it is first asked for."""
    return lambda: getattr(import_module(module), name)


DIALECTS: dict[str, Callable[[], Dialect]] = {
    "fx": dialect("gqc.dialects.fx", "Fx"),
    "gq": dialect("gqc.dialects.gq", "Gq"),
    "tile": dialect("gqc.dialects.tile", "Tile"),
}

UNIVERSE = Universe(all_dialects=DIALECTS, all_passes=PASSES)
