"""Build the tile kernels of many rows of 8-bit activations, where a CPU multiplies bytes in tiles.

Panels of weights are unpacked once, to the bytes of unsigned codes; the rest is as for single rows.
"""

from __future__ import annotations

from dataclasses import dataclass

from xdsl.dialects import arith
from xdsl.ir import Attribute, SSAValue

from gqc.dialects import tile
from gqc.passes.int8_matmul_kernel import Int8MatmulKernel
from gqc.passes.kernel_builder import cast, element_named, named
from gqc.passes.panel_matmul_kernel import PanelMatmulKernel


@dataclass
class Int8PanelMatmulKernel(Int8MatmulKernel, PanelMatmulKernel):
    """Builds the kernel of one matmul for a schedule with a panel; arguments as without one."""

    def decoded_type(self) -> Attribute:
        return element_named("ui8")

    @property
    def sums_x(self) -> bool:
        """They are an argument."""
        return False

    def decode(self, k: SSAValue, place: SSAValue) -> None:
        with self.some_columns() as column:
            codes = cast(self.load_codes(k), self.dot_type, "w_tile")
            tile.StoreOp(codes, self.decoded, [place, column])

    def multiply(self, row: SSAValue, chunk: SSAValue) -> None:
        with self.loop("place", self.constant(self.chunk), self.bk) as place:
            k = named(arith.AddiOp(chunk, place), "k")
            codes = self.load_decoded(place, self.bk)
            self.store_sums(row, self.add_group(self.load_sums(row, self.bm), k, codes))
