"""Runtime: the torch operators that compiled models call, with their gradients."""

from gqc.runtime import gradients, ops

__all__ = ["gradients", "ops"]
