"""No vectors are kept on the stack in loops, but for those in a table, which may only get fewer."""

from __future__ import annotations

import pytest
from spills import known, llvm, spills, spills_in_loops

CASES = [
    *(("amx", scheme, "bf16") for scheme in ("int4_g128", "w4a16_nvfp4", "w4a8_g32")),
    *(("avx512bf16", f"int4_g{group}", "bf16") for group in (32, 128)),
    *(("avx512bf16", scheme, "bf16") for scheme in ("w4a16_mxfp4", "w8a16_mxfp8", "nvfp4")),
    ("cooperlake", "w8a16_mxfp8", "bf16"),
    *(("avx512", scheme, "f32") for scheme in ("int4_g128", "w4a16_mxfp4")),
    *(("avx2", scheme, "f32") for scheme in ("int4_g128", "int4_g32", "w4a16_mxfp4")),
    ("avx2", "mxfp8", "bf16"),
    *((tier, "w4a8_g128", "bf16") for tier in ("avx512vnni", "avx512", "avxvnni", "avx2")),
    *((tier, "w8a8_g32", "bf16") for tier in ("avx512bf16", "avx2")),
]
"""Some of each kind; `python tests/spills.py` counts all."""


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_no_more_than_are_known(case: tuple[str, str, str]) -> None:
    table = known()
    if table is None:
        pytest.skip(f"no counts are known of {llvm()}: run python tests/spills.py")
    found = spills(*case)
    more = {name: count for name, count in found.items() if count > table.get(name, 0)}
    fewer = {name: count for name, count in found.items() if count < table.get(name, 0)}
    assert not more, "more spills than tests/spills.json has"
    assert not fewer, "fewer spills than tests/spills.json has: run python tests/spills.py"


def test_what_is_counted() -> None:
    """Vectors in loops at any depth; neither what lies outside, nor scalars."""
    text = """
f:
\tvmovaps\t%zmm0, (%rsp)                  # 64-byte Spill
.LBB0_1:                                # =>This Loop Header: Depth=1
                                        #     Child Loop BB0_2 Depth 2
\tvmovaps\t(%rsp), %zmm0                  # 64-byte Reload
\tmovq\t%rax, 8(%rsp)                     # 8-byte Spill
.LBB0_2:                                # =>  This Inner Loop Header: Depth=2
\tvaddps\t(%rsp), %ymm0, %ymm1            # 32-byte Folded Reload
# %bb.3:                                #   in Loop: Header=BB0_1 Depth=1
\tvmovaps\t%xmm0, 64(%rsp)                # 16-byte Spill
# %bb.4:
\tvmovaps\t(%rsp), %zmm0                  # 64-byte Reload
"""
    assert spills_in_loops(text) == 3
