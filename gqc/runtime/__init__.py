"""Runtime: the torch operators that compiled models call, with their gradients."""

from gqc.runtime import autocast, gradients, ops

__all__ = ["autocast", "gradients", "ops"]
