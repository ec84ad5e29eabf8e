"""gqc inspect: figures and gates of printed kernels, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import gqc
from gqc.tools.cli import app


@pytest.fixture(scope="module")
def dump(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of one int4 layer for sm_90: three kernels."""
    import torch

    folder = tmp_path_factory.mktemp("dump")
    model = torch.nn.Sequential(torch.nn.Linear(256, 128, dtype=torch.bfloat16))
    gqc.compile(model, scheme="int4_g128", target="sm_90", dump_ir=str(folder))
    return folder


def run(*args: object):
    return CliRunner().invoke(app, ["inspect", *map(str, args)])


def test_a_folder_as_json(dump: Path) -> None:
    result = run(dump, "--json", "--rows", 8)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert len(found) == len(list((dump / "kernels").glob("*.py"))) == 3
    for kernel in found:
        assert kernel["target"] == "sm_90" and kernel["rows"] == 8
        assert any(name.startswith("HGMMA") for name in kernel["matrix_instructions"])
        assert not [g for g in kernel["gates"] if g["required"] and g["fault"]]


def test_ir_for_another_target(dump: Path) -> None:
    (path,) = (dump / "kernels").glob("*m16.mlir")
    result = run(path, "--target", "sm_80")
    assert result.exit_code == 0, result.output
    assert "for sm_80, Triton" in result.stdout and "HMMA.16816" in result.stdout
    assert "passed matrix instruction" in result.stdout and "for 16 rows" in result.stdout


def test_a_missed_gate_is_status_1(dump: Path, tmp_path: Path) -> None:
    (path,) = (dump / "kernels").glob("*m16.py")
    other = tmp_path / "other.py"
    other.write_text(path.read_text().replace("for sm_90,", "for sm_90 (matrix: mxf4),"))
    result = run(other)
    assert result.exit_code == 1
    assert "missed matrix instruction: sm_90 has no mxf4: found HGMMA" in result.stdout


def test_bad_input_is_status_2(dump: Path, tmp_path: Path) -> None:
    (path,) = (dump / "kernels").glob("*m16.py")
    (tmp_path / "x.py").write_text("x = 1")
    for args, fault in [
        ((tmp_path / "absent",), "no such file or folder"),
        ((tmp_path / "x.py",), "does not say for which target"),
        ((dump / "00_import.mlir",), "no such file or folder"),
        ((min(dump.glob("*.mlir")),), "holds 0 kernels"),
        ((path, "--rows", 0), "at least one row"),
        ((path, "--target", "sm_70"), "no GPU sm_70: choose one of"),
        ((path, "--triton-python", tmp_path / "no-python"), "no-python"),
    ]:
        result = run(*args)
        assert result.exit_code == 2 and fault in result.output, (args, result.output)


def test_damaged_files_are_said_in_one_line(dump: Path, tmp_path: Path) -> None:
    (ir,) = (dump / "kernels").glob("*m16.mlir")
    (source,) = (dump / "kernels").glob("*m16.py")
    text, python = ir.read_text(), source.read_text()
    for name, damaged, fault in [
        ("cut.mlir", text[: len(text) // 2].encode(), "cut.mlir:"),
        ("bytes.mlir", b"\xff" + text.encode(), "bytes.mlir:1:1: the file is not UTF-8"),
        ("string.mlir", text.encode() + b'"' + b"a b " * 99, "a string does not end"),
        ("late.mlir", text.replace("%c0 =", "%c9 =", 1).encode(), "%c0"),
        ("bytes.py", b"\xff" + python.encode(), "bytes.py: 'utf-8' codec"),
        ("zero.py", b"\0" + python.encode(), "zero.py: no Python source"),
        ("options.py", python.replace('"num_warps": 4', '"num_warps": a').encode(), "its OPTIONS"),
        ("arrays.py", python.replace(" [M, ", " [Q, ").encode(), "does not say which arrays"),
        ("cut.py", python[: len(python) // 2].encode(), "cut.py: no Python source"),
    ]:
        path = tmp_path / name
        path.write_bytes(damaged)
        result = run(path)
        assert result.exit_code == 2 and fault in result.output, (name, result.output)
        assert "Traceback" not in result.output and result.exception.__class__ is SystemExit
