"""Every CPU target's kernels are lowered, whatever the machine: some of `every_kernel.py`."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from every_kernel import CPUS, cases, formats, problem


@pytest.mark.parametrize("target", CPUS)
def test_kernels_of_a_target(linear, target: str) -> None:
    """Some of each; the step has no divisor in common with the turns of formats and tiles."""
    some = list(cases(target))[CPUS.index(target) :: 277]
    assert len(some) > 5
    assert not [found for case in some if (found := problem(case, linear)) is not None]


def test_many_rows_by_amx(linear) -> None:
    """Of bf16, which its tiles multiply, where the panel is bf16 and K has no tail. A step of
    several blocks of 16 is scaled first, which gives what bf16 holds or not."""
    panels = [case for case in cases("cpu_amx", ("bf16",)) if case.tiling.panel]
    assert len(panels) == len(list(formats()))
    some = [case for n, case in enumerate(panels) if "1x16" in case.format or n % 8 == 0]
    assert not [found for case in some if (found := problem(case, linear)) is not None]
