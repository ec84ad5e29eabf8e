"""docs/formats.md says what becomes of the samples."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest
from checkpoints.samples import SAMPLES

CASES = [(format, variant) for format, variants in SAMPLES.items() for variant in variants]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[2] / "docs" / "formats.py"
    spec = importlib.util.spec_from_file_location("formats_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def rows_of(script: ModuleType, title: str) -> list[str]:
    """Rows of one table."""
    text = script.PAGE.read_text(encoding="utf-8")
    section = text.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    return [row for row in section.splitlines() if row.startswith("| `")]


def test_every_sample_has_a_row(script: ModuleType) -> None:
    assert SAMPLES.keys() == script.TITLES.keys()
    for format, variants in SAMPLES.items():
        rows = rows_of(script, script.TITLES[format])
        named = {name.strip("` ") for row in rows for name in row.split("|")[1].split(",")}
        assert named == variants.keys(), format


@pytest.mark.parametrize(("format", "variant"), random.Random(0).sample(CASES, 8))
def test_a_row_is_true(script: ModuleType, format: str, variant: str) -> None:
    expected = script.line([variant], script.outcome(format, variant)).partition(" | ")[2]
    rows = rows_of(script, script.TITLES[format])
    (row,) = [row for row in rows if f"`{variant}`" in row.split("|")[1]]
    assert row.partition(" | ")[2] == expected


def test_refusals_are_what_is_said(script: ModuleType) -> None:
    assert rows_of(script, "Refused")[1:] == [*script.refusals()]
