"""Four Over Six: each NVFP4 block has its greatest element at 6 or at 4, whichever errs less.

Cook et al., arXiv 2512.02010. E2M1 has no code between 4 and 6, so a block with elements a little
below its greatest is served better by 1, 2, 3 and 4. Its scale is then half as large again, so the
tensor scale makes the greatest block scale 256 in place of 448: 256 · 6/4 = 384 is an E4M3 too.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqc.formats.block_scaled import BlockScaled
from gqc.formats.microscaling import E4M3, nvfp4_scale, nvfp4_tensor_scale
from gqc.quantizers.microscaling import TWO_LEVEL, refuse_mismatch
from gqc.quantizers.scale_search import best_of

if TYPE_CHECKING:
    import torch

    from gqc.dialects.gq import BlockScaledType
    from gqc.quantizers.statistics import Statistics

GREATEST_SCALE = 256.0


def four_over_six(
    weight: torch.Tensor,
    type_: BlockScaledType,
    scale_rule: str,
    tensor_scale: torch.Tensor | None = None,
    statistics: Statistics | None = None,
) -> BlockScaled:
    """Quantize a weight [N, K] to NVFP4.

    Raises ValueError on types of other scales, on rules but `amax`, and on inf or NaN.
    """
    import torch

    if str(type_.scale) not in TWO_LEVEL or not type_.has_tensor_scale:
        raise ValueError(f"four_over_six is for NVFP4, not {type_}")
    refuse_mismatch(type_, weight.shape, scale_rule, tensor_scale)
    if not torch.isfinite(weight).all():
        raise ValueError("the weight holds inf or NaN")
    element, size = type_.format, type_.block_of(weight.shape)[-1]
    amax = weight.detach().float().abs().unflatten(-1, (-1, size)).amax(-1)
    if tensor_scale is None:
        tensor_scale = nvfp4_tensor_scale(amax * (E4M3.maximum / GREATEST_SCALE), element)
    at_6, at_4 = (nvfp4_scale(amax * (6 / m), element, tensor_scale) for m in (6, 4))
    candidates = [scale.view(torch.uint8) for scale in (at_6, at_4)]
    codes, scale = best_of(weight.detach().float(), candidates, type_, tensor_scale, None)
    return BlockScaled(type_, codes, scale.view(at_6.dtype), tensor_scale=tensor_scale)
