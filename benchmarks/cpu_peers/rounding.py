"""Rounding of weights to four bits, for libraries that leave it to others."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Codes:
    """codes: [N, K] in 0…15; scale, zero: [N, G], float32 that float16 holds, and 0…15.

    A weight is (code − zero) · scale.
    """

    codes: np.ndarray
    scale: np.ndarray
    zero: np.ndarray

    @property
    def group(self) -> int:
        return self.codes.shape[1] // self.scale.shape[1]

    def shifted(self, rows: int) -> Codes:
        """The same weight, its rows moved down: a copy that is not merged with equal ones."""
        return Codes(*(np.roll(part, rows, 0) for part in (self.codes, self.scale, self.zero)))

    def dequantized(self) -> np.ndarray:
        """[N, K] in float64."""
        grouped = self.codes.reshape(*self.scale.shape, -1).astype(np.float64)
        values = (grouped - self.zero[..., None]) * self.scale[..., None].astype(np.float64)
        return values.reshape(self.codes.shape)


def to_nearest(weight: np.ndarray, group: int) -> Codes:
    """Asymmetric codes of four bits, from the least to the greatest weight of a group."""
    grouped = weight.reshape(len(weight), -1, group)
    low, high = np.minimum(grouped.min(-1), 0), np.maximum(grouped.max(-1), 0)
    scale = ((high - low) / 15).astype(np.float16).astype(np.float32)
    zero = np.clip(np.rint(-low / scale), 0, 15)
    codes = np.clip(np.rint(grouped / scale[..., None]) + zero[..., None], 0, 15)
    return Codes(codes.astype(np.uint8).reshape(weight.shape), scale, zero.astype(np.uint8))


def nibbles(codes: np.ndarray) -> np.ndarray:
    """Two codes a byte, along the last axis, the first in the low half."""
    return codes[..., ::2] | codes[..., 1::2] << 4
