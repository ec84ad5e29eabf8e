"""CPU tiers whose code tests run: those that this CPU has, and NEON, which others emulate.

All kernels run between pages that may not be touched.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import cycle

import pytest
from guard_pages import SIDES, guarded

from gqc.codegen.cpu import jit
from gqc.codegen.cpu.isa import ISAS, Isa, missing
from gqc.dialects.tile import KernelOp

EMULATED = [name for name, isa in ISAS.items() if jit.foreign(isa)]
RUN = [name for name, isa in ISAS.items() if name in EMULATED or not missing(isa)]


def runs_here(isa: str) -> None:
    """Skip a test of a tier that does not run here."""
    if isa not in RUN:
        pytest.skip(f"this CPU has no {isa}")


def emulate(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have kernels of emulated tiers loaded into the emulator, which has such pages of its own, and
    others called on arrays in them. Tests count what tiles do, so those kernels run once a call."""
    native, turns = jit.load, cycle(SIDES)

    def load(kernel: KernelOp, isa: Isa) -> Callable[..., None]:
        if isa.name not in EMULATED:
            sides = SIDES if isa.tile_dot_bf16 is None else (next(turns),)
            return guarded(native(kernel, isa), sides)
        import emulated_arm

        return emulated_arm.load(kernel, isa)

    monkeypatch.setattr(jit, "load", load)
