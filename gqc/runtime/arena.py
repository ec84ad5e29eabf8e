"""Memory for tensors that live as long as one another, such as the packed weights of a model."""

from __future__ import annotations

import mmap

import torch

BLOCK = 64 << 20
"""Bytes that are asked for at once; of one tensor, if it has more."""
LINE = 64
"""Bytes of a cache line, and of a vector: tensors start at whole ones."""


class Arena:
    """Tensors side by side in huge pages, where the system gives these to who asks (Linux).

    At few rows a layer takes as long as its weight is read. In pages of 4 KB the memory of codes,
    scales and zero points is looked up anew every 64 cache lines of each, which in blocks of 32
    elements is a tenth of the time. Memory is given back with the last tensor of a block.
    """

    def __init__(self) -> None:
        self.block, self.used = mmap.mmap(-1, mmap.PAGESIZE), mmap.PAGESIZE

    def keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """A contiguous copy of a tensor in the arena; the tensor itself if it is not on the CPU."""
        if tensor.device.type != "cpu" or tensor.numel() == 0:
            return tensor
        start = -(-self.used // LINE) * LINE
        if start + tensor.nbytes > len(self.block):
            self.block, start = block_of(max(BLOCK, tensor.nbytes)), 0
        self.used = start + tensor.nbytes
        kept = torch.frombuffer(self.block, dtype=tensor.dtype, count=tensor.numel(), offset=start)
        return kept.view(tensor.shape).copy_(tensor)


def block_of(size: int) -> mmap.mmap:
    """Memory of this process alone, of which only what is written to takes any."""
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
