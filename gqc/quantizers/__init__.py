"""Quantizers, one a file: a float weight and a block-scaled type to a `BlockScaled`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from gqc.quantizers.awq import awq
from gqc.quantizers.checks import refuse_specials, underflow
from gqc.quantizers.column_order import column_order
from gqc.quantizers.four_over_six import four_over_six
from gqc.quantizers.gptq import gptq
from gqc.quantizers.hqq import hqq
from gqc.quantizers.microscaling import MICROSCALING_RULES, microscaling
from gqc.quantizers.rtn import SCALE_RULES, rtn
from gqc.quantizers.scale_search import scale_search
from gqc.quantizers.smoothquant import smoothquant
from gqc.quantizers.statistics import Statistics

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.formats.block_scaled import BlockScaled
    from gqc.schemes import Scheme


class Quantizer(Protocol):
    """Quantize a weight [N, K] in float32 under a rule of `RULES`.

    `tensor_scale` is for types that have one; None takes it from the weight. `statistics` are those
    of the layer's inputs; a quantizer outside of `CALIBRATED` goes without, and may ignore them.
    Raises ValueError on what it has no meaning for.
    """

    def __call__(
        self,
        weight: torch.Tensor,
        type_: BlockScaledType,
        scale_rule: str,
        tensor_scale: torch.Tensor | None = None,
        statistics: Statistics | None = None,
    ) -> BlockScaled: ...


QUANTIZERS: dict[str, Quantizer] = {
    "rtn": rtn,
    "hqq": hqq,
    "microscaling": microscaling,
    "scale_search": scale_search,
    "four_over_six": four_over_six,
    "gptq": gptq,
}

MICROSCALING = tuple(dict.fromkeys(r for rules in MICROSCALING_RULES.values() for r in rules))

RULES: dict[str, tuple[str, ...]] = {
    "rtn": tuple(SCALE_RULES),
    "hqq": ("minmax",),
    "microscaling": MICROSCALING,
    "scale_search": (*SCALE_RULES, *MICROSCALING),
    "four_over_six": ("amax",),
    "gptq": (*SCALE_RULES, *MICROSCALING),
}
"""Names of the scale rules of each quantizer."""

FACTORS: dict[str, Callable[..., torch.Tensor | None]] = {"awq": awq, "smoothquant": smoothquant}
"""Transforms by factors of channels, each from weights, scheme and statistics."""

AT_RUN_TIME = ("smoothquant",)
"""Transforms whose factors multiply the input as the model runs where nothing before takes them: an
input that is quantized is read for that anyway."""

TRANSFORMS = (*FACTORS, "hadamard")
"""What may be done to the channels of a layer's input before its weight is quantized."""

ORDERED = ("gptq",)
"""Quantizers under which the channels of an input are reordered (`column_order`), where the layers
before can give them in another order."""

CALIBRATED = ("gptq", *FACTORS)
"""Quantizers and transforms that need statistics of a layer's inputs."""

WEIGHTED = ("scale_search", *CALIBRATED)
"""Those that make use of statistics where there are any."""


def quantize(
    weight: torch.Tensor, scheme: Scheme, statistics: Statistics | None = None
) -> BlockScaled:
    """Quantize a weight [N, K] by the scheme's quantizer, without its transforms.

    Raises ValueError as the quantizer does, if it needs statistics and has none, and on a weight
    that holds inf or NaN.
    """
    refuse_specials(weight)
    quantizer = QUANTIZERS[scheme.quantizer]
    return quantizer(weight, scheme.type(), scheme.scale_rule, statistics=statistics)


__all__ = [
    "AT_RUN_TIME",
    "CALIBRATED",
    "FACTORS",
    "MICROSCALING_RULES",
    "ORDERED",
    "QUANTIZERS",
    "RULES",
    "SCALE_RULES",
    "TRANSFORMS",
    "WEIGHTED",
    "Quantizer",
    "Statistics",
    "awq",
    "column_order",
    "four_over_six",
    "gptq",
    "hqq",
    "microscaling",
    "quantize",
    "refuse_specials",
    "rtn",
    "scale_search",
    "smoothquant",
    "underflow",
]
