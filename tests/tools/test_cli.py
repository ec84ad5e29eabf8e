"""The gqc command."""

from __future__ import annotations

import pytest
from typer.testing import CliRunner

from gqc.targets import TARGETS, resolve
from gqc.tools.cli import app


def test_targets_lists_every_row_and_marks_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    shown = CliRunner().invoke(app, ["targets"]).stdout
    for target in TARGETS.values():
        (line,) = (line for line in shown.splitlines() if line.split()[1:2] == [target.name])
        assert all(unit in line for unit in target.units.values())
        assert ("(this machine)" in line) == (target.name == resolve("cpu").name)


def test_version() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout.startswith("gqc 0.")
