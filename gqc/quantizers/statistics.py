"""Statistics of a layer's inputs: all that quantizers ask of calibration, in K·K floats."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from gqc.formats.rotation import rotate

if TYPE_CHECKING:
    import torch

SAMPLE = 256
"""Rows that are kept as they are."""


@dataclass
class Statistics:
    """What is known of the inputs x [K] of a layer, over `rows` of them; all parts are float32.

    gram: mean of x·xᵀ, [K, K]. mean: of |x|, [K]. greatest: |x|, [K]. sample: up to `SAMPLE` rows
    drawn without preference, [S, K], for errors of quantized inputs; `keys` [S] says which rows
    another draw would replace. A layer that was called on no token has 0 rows and zeros.
    """

    rows: int
    gram: torch.Tensor
    mean: torch.Tensor
    greatest: torch.Tensor
    sample: torch.Tensor
    keys: torch.Tensor

    @staticmethod
    def of(features: int) -> Statistics:
        """Statistics of no input yet."""
        import torch

        mean, greatest = torch.zeros(2, features)
        gram, sample = torch.zeros(features, features), torch.empty(0, features)
        return Statistics(0, gram, mean, greatest, sample, torch.empty(0))

    @property
    def power(self) -> torch.Tensor:
        """Mean of x², [K]."""
        return self.gram.diagonal()

    def update(self, x: torch.Tensor, generator: torch.Generator | None = None) -> None:
        """Count the rows of x [..., K]; `generator` draws the sample.

        Means are kept, not sums, so that no number of rows is too many for float32. Raises
        ValueError on inf or NaN.
        """
        import torch

        x = x.detach().reshape(-1, x.shape[-1]).float()
        if not len(x):
            return
        if not torch.isfinite(x).all():
            raise ValueError("its calibration inputs hold inf or NaN")
        self.rows += len(x)
        rest, size = 1 - len(x) / self.rows, x.abs()
        self.gram.addmm_(x.T, x, beta=rest, alpha=1 / self.rows)
        self.mean.mul_(rest).add_(size.sum(0), alpha=1 / self.rows)
        self.greatest = torch.maximum(self.greatest, size.amax(0))
        self.keys = torch.cat([self.keys, torch.rand(len(x), generator=generator)])
        self.keys, kept = self.keys.topk(min(SAMPLE, len(self.keys)), largest=False)
        self.sample = torch.cat([self.sample, x])[kept]

    def scaled(self, factor: torch.Tensor) -> Statistics:
        """Statistics of x · factor, [K], channel by channel."""
        size = factor.float()
        return replace(
            self,
            gram=self.gram * size * size.unsqueeze(1),
            mean=self.mean * size.abs(),
            greatest=self.greatest * size.abs(),
            sample=self.sample * size,
        )

    def permuted(self, order: torch.Tensor) -> Statistics:
        """Statistics of x[order]."""
        return replace(
            self,
            gram=self.gram[order][:, order],
            mean=self.mean[order],
            greatest=self.greatest[order],
            sample=self.sample[:, order],
        )

    def rotated(self, block: int) -> Statistics:
        """Statistics of x with each `block` elements rotated (`gqc.formats.rotation`).

        `mean` and `greatest` do not follow from those of x: they become NaN.
        """
        unknown = self.mean.new_full((len(self.mean),), float("nan"))
        gram = rotate(rotate(self.gram, block).T, block)
        sample = rotate(self.sample, block)
        return replace(self, gram=gram, mean=unknown, greatest=unknown, sample=sample)

    def output_error(self, error: torch.Tensor) -> torch.Tensor:
        """Mean square over the inputs of each output of a layer of weight `error` [N, K]: [N].

        That is the diagonal of E·G·Eᵀ: what errors E of a weight do to the layer's outputs.
        """
        return ((error.float() @ self.gram) * error).sum(1)
