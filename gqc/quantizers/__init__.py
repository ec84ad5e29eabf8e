"""Quantizers, one a file: a float weight and a block-scaled type to a `BlockScaled`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gqc.quantizers.hqq import hqq
from gqc.quantizers.microscaling import MICROSCALING_RULES, microscaling
from gqc.quantizers.rtn import SCALE_RULES, rtn
from gqc.quantizers.scale_search import scale_search

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.formats.block_scaled import BlockScaled

Quantizer = Callable[["torch.Tensor", "BlockScaledType", str], "BlockScaled"]

QUANTIZERS: dict[str, Quantizer] = {
    "rtn": rtn,
    "hqq": hqq,
    "microscaling": microscaling,
    "scale_search": scale_search,
}

MICROSCALING = tuple(dict.fromkeys(r for rules in MICROSCALING_RULES.values() for r in rules))

RULES: dict[str, tuple[str, ...]] = {
    "rtn": tuple(SCALE_RULES),
    "hqq": ("minmax",),
    "microscaling": MICROSCALING,
    "scale_search": MICROSCALING,
}
"""Names of the scale rules of each quantizer."""

__all__ = [
    "MICROSCALING_RULES",
    "QUANTIZERS",
    "RULES",
    "SCALE_RULES",
    "Quantizer",
    "hqq",
    "microscaling",
    "rtn",
    "scale_search",
]
