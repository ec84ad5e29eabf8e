"""Runtime: the torch operator that launches compiled kernels, and what a compiled model knows."""
