"""Predicted times: data-sheet figures by hand, and what a measured machine must satisfy."""

from __future__ import annotations

import pytest

from gqc.mixed_precision.decode_time import Rates, rates_of
from gqc.schemes import preset

SHAPE = (4096, 11008)


def test_memory_bound_on_a_gpu() -> None:
    """H100: 3.35 TB/s; int4_g128 has 4.25 bits an element; x and y have 16."""
    moved = 4096 * 11008 * 4.25 / 8 + 2 * (4096 + 11008)
    found = rates_of("sm_90").microseconds(preset("int4_g128").type(), SHAPE)
    assert found == pytest.approx(moved / 3.35e12 * 1e6, rel=1e-9)


def test_bound_by_operations() -> None:
    slow = Rates(1e12, 1e9, "")
    found = slow.microseconds(preset("int2_g32").type(), SHAPE)
    assert found == pytest.approx(2 * 4096 * 11008 / 1e9 * 1e6)


def test_this_cpu_is_measured_once() -> None:
    rates = rates_of("cpu_avx2")
    assert rates is rates_of("cpu_avx512")
    assert 1e8 < rates.bandwidth < 5e12  # from a busy core to many channels of HBM
    assert 1e8 < rates.operations < 1e15
