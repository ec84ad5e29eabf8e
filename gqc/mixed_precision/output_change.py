"""How far the output of a changed model is from that of the model as it was."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils import _pytree as pytree

from gqc.errors import GqcError
from gqc.frontend.capture import Inputs


class Reference:
    """The output of the model as it was, for one input.

    Outputs with `logits` of several classes are compared by the Kullback–Leibler divergence of what
    they predict from what was predicted, in nats, others by the square of their difference.
    Padding, by a mask of tokens among the keyword inputs (`attention_mask`), does not count.

    size: what the sum over inputs of `change` is to be divided by, summed likewise: the number of
    predictions, or the square of the output.
    """

    def __init__(self, output: Any, example: Inputs):
        self.mask = example[1].get("attention_mask")
        self.predicts = logits_of(output) is not None
        self.parts = self.read(output)
        if self.predicts:
            self.size = float(self.parts[0][..., 0].numel())
        else:
            self.size = sum(part.square().sum().item() for part in self.parts)

    def read(self, output: Any) -> list[torch.Tensor]:
        """Log-probabilities, or all that is floating-point. Raises GqcError if there is nothing."""
        if self.predicts:
            return [self.counted(output.logits).float().log_softmax(-1)]
        leaves = pytree.tree_leaves(output)
        floats = [x for x in leaves if isinstance(x, torch.Tensor) and x.is_floating_point()]
        if not floats:
            raise GqcError(
                f"the model's output, a {type(output).__name__}, has no floating-point tensors to "
                "compare: return tensors, in tuples, lists, dicts or types registered with torch's "
                "pytree, or `logits`"
            )
        return [self.counted(x).double() for x in floats]

    def counted(self, x: torch.Tensor) -> torch.Tensor:
        """What of an output is no padding."""
        mask = self.mask
        if isinstance(mask, torch.Tensor) and mask.ndim == 2 and x.shape[:2] == mask.shape:
            return x[mask.bool()]
        return x

    def change(self, output: Any) -> float:
        """How far another output is, a sum over its predictions or elements."""
        pairs = zip(self.parts, self.read(output), strict=True)
        measure = divergence if self.predicts else squared_difference
        return sum(measure(exact, found) for exact, found in pairs)


def logits_of(output: Any) -> torch.Tensor | None:
    """The logits of an output, if it predicts one of several classes."""
    logits = getattr(output, "logits", None)
    return logits if isinstance(logits, torch.Tensor) and logits.shape[-1] > 1 else None


def divergence(exact: torch.Tensor, found: torch.Tensor) -> float:
    """KL(p‖q) of log-probabilities [..., classes], summed over all but classes.

    As Σ p·(eᵈ − 1 − d), d = log q − log p: the same, for q sums to 1 as p does, but its terms are
    positive, so that a small sum is not what rounding leaves of large ones.
    """
    p, d = exact.exp(), found - exact
    terms = torch.where(p > 0, p * (torch.expm1(d) - d), 0)
    return max(terms.double().sum().item(), 0.0)


def squared_difference(exact: torch.Tensor, found: torch.Tensor) -> float:
    return (found - exact).square().sum().item()
