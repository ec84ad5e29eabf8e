"""Passes, one a file; `PASSES` names them for gqc-opt and `pipeline` puts them in order."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from xdsl.passes import ModulePass


def pass_(name: str) -> Callable[[], type[ModulePass]]:
    """The pass of this name, imported when it is first asked for.

    `recognize-linears` is class `RecognizeLinears` of module `gqc.passes.recognize_linears`.
    """
    module = f"gqc.passes.{name.replace('-', '_')}"
    class_name = "".join(word.capitalize() for word in name.split("-"))
    return lambda: getattr(import_module(module), class_name)


PASSES: dict[str, Callable[[], type[ModulePass]]] = {
    name: pass_(name)
    for name in (
        "recognize-linears",
        "adopt-weights",
        "quantize-weights",
        "fold-channels",
        "quantize-activations",
        "merge-linears",
        "legalize",
        "assign-layouts",
        "split-m-buckets",
        "lower-channels",
        "fuse-producers",
        "lower-quantizers",
        "lower-to-tile",
        "fuse-epilogues",
        "fold-weights",
        "verify-contract",
    )
}
