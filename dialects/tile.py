"""The `tile` dialect: kernels for every target.

A kernel reads and writes global arrays (`memref`, row-major and contiguous, every dimension static
but for the rows) and computes on tiles (`vector`). One program of the grid makes one BM×BN tile of
the output. Loops are `scf.for`, index arithmetic and elementwise tile arithmetic are `arith`; this
dialect adds only what those lack: memory with bounds, unpacking of packed codes, and the dots.
On a GPU a tile is a block tensor, on a CPU a family of vector registers.
"""

from xdsl.ir import Dialect

from gqc.dialects.tile_compute import (
    BroadcastOp,
    CastOp,
    DotOp,
    FullOp,
    MaxOp,
    RepeatOp,
    SumOp,
    TransposeOp,
    UnpackOp,
)
from gqc.dialects.tile_kernel import (
    AddPartsOp,
    KernelOp,
    LoadOp,
    ProgramIdOp,
    StoreOp,
    element_of,
    shape_of,
)
from gqc.dialects.tile_panels import TakePanelsOp
from gqc.dialects.tile_quantize import QcastOp
from gqc.dialects.tile_scaled import BitcastOp, DotScaledOp, PermuteOp, ReshapeOp, WidenOp

__all__ = [
    "AddPartsOp",
    "BitcastOp",
    "BroadcastOp",
    "CastOp",
    "DotOp",
    "DotScaledOp",
    "FullOp",
    "KernelOp",
    "LoadOp",
    "MaxOp",
    "PermuteOp",
    "ProgramIdOp",
    "QcastOp",
    "RepeatOp",
    "ReshapeOp",
    "StoreOp",
    "SumOp",
    "TakePanelsOp",
    "Tile",
    "TransposeOp",
    "UnpackOp",
    "WidenOp",
    "element_of",
    "shape_of",
]

Tile = Dialect(
    "tile",
    [
        KernelOp,
        ProgramIdOp,
        AddPartsOp,
        FullOp,
        LoadOp,
        StoreOp,
        UnpackOp,
        CastOp,
        RepeatOp,
        BroadcastOp,
        TransposeOp,
        MaxOp,
        SumOp,
        DotOp,
        QcastOp,
        BitcastOp,
        WidenOp,
        ReshapeOp,
        PermuteOp,
        DotScaledOp,
        TakePanelsOp,
    ],
    [],
)
