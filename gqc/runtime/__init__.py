"""Runtime: the torch operators that compiled models call, with their gradients and batches."""

from gqc.runtime import autocast, batching, gradients, ops

__all__ = ["autocast", "batching", "gradients", "ops"]
