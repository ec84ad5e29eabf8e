"""gqc: the compiler for grouped-quantized models."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gqc.checkpoints.save import save as save
    from gqc.driver.compile import compile as compile
    from gqc.driver.generator import generator as generator
    from gqc.driver.load import load as load
    from gqc.driver.report import Report as Report
    from gqc.errors import GqcError as GqcError
    from gqc.mixed_precision import search as search
    from gqc.quantization import quantize as quantize
    from gqc.schemes import Scheme as Scheme

EXPORTS = {
    "compile": "gqc.driver.compile",
    "GqcError": "gqc.errors",
    "generator": "gqc.driver.generator",
    "load": "gqc.driver.load",
    "Report": "gqc.driver.report",
    "Scheme": "gqc.schemes",
    "quantize": "gqc.quantization",
    "save": "gqc.checkpoints.save",
    "search": "gqc.mixed_precision",
}
"""Where each public name lives. They load when first used: the IR tools need no torch."""

__all__ = [*EXPORTS]  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> Any:
    if name not in EXPORTS:
        raise AttributeError(f"module 'gqc' has no attribute {name!r}")
    return getattr(import_module(EXPORTS[name]), name)
