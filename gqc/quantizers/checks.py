"""What is asked of every weight, whatever quantizes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gqc.formats.elements import SCALES

if TYPE_CHECKING:
    import torch

    from gqc.formats.block_scaled import BlockScaled

FEW = 4
"""Scales of fewer of the least numbers of their format have fewer than three bits."""


def refuse_specials(weight: torch.Tensor) -> None:
    """Raise ValueError on a weight that holds inf or NaN: no scale fits its block."""
    import torch

    if weight.numel() and not torch.isfinite(torch.stack(weight.detach().aminmax())).all():
        raise ValueError("the weight holds inf or NaN")


def underflow(weight: torch.Tensor, found: BlockScaled) -> str:
    """What to say of a weight all of which lies near the least scale of its format; else empty.

    A few small blocks in a weight err less than its large ones do. Where all blocks are small, the
    quantized weight is a poor copy, or all zeros.
    """
    import torch

    type_ = found.type
    if not type_.format.is_integer or not found.codes.numel():
        return ""
    used = found.blocked(found.codes.ne(0)).any(3).any(1).reshape(found.scale.shape)
    if used.any():
        least = SCALES[str(type_.scale)].decode(1)
        if found.scale[used].float().abs().max() >= FEW * least:
            return ""
    elif torch.allclose(found.dequantize(), weight.float(), rtol=2.0**-8, atol=0.0):
        return ""  # all zeros, or blocks of equal elements
    zero = " zero=f32" if type_.has_zero and not type_.mode.integer else ""
    return (
        f"the weight is at most {float(weight.detach().abs().max()):.1e}, near the least scale in "
        f"{type_.scale}: to keep it give the scheme scale=f32{zero}"
    )
