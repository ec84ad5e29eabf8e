"""Dialects: fx (torch-level calls), gq (block-scaled tensors), tile (kernels)."""
