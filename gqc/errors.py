"""The error that gqc raises for input it cannot take."""

from __future__ import annotations


class GqcError(Exception):
    """Bad input. The message names the layer, what is wrong with it, and the remedy."""
