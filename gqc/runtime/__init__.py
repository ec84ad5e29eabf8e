"""Runtime: the torch operator that launches compiled kernels."""
