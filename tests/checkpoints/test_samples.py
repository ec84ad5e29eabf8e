"""Readers give what independent packers wrote, to the bit."""

from __future__ import annotations

from pathlib import Path

import pytest
from checkpoints.samples import SAMPLES

CASES = [(format, variant) for format, variants in SAMPLES.items() for variant in variants]


@pytest.mark.parametrize(("format", "variant"), CASES)
def test_parameters_are_what_was_packed(format: str, variant: str, tmp_path: Path) -> None:
    SAMPLES[format][variant]().check(tmp_path)
