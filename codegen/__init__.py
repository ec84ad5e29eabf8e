"""Kernels from tile IR: Triton source and CPU code."""
