"""Resume: a run that was killed goes on, to the bits of one that was not."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from quantization.models import Experts, gpt2, llama, texts
from quantization.test_quantize import assert_same_models

import gqc
from gqc.errors import GqcError

SCRIPT = """
import os, signal, sys
import gqc
from quantization.models import llama, texts

replaced = os.replace

def replace(source, target):
    if "part-00002" in str(target):  # written, and not yet named
        os.kill(os.getpid(), signal.SIGKILL)
    replaced(source, target)

os.replace = replace
gqc.quantize(llama(3), scheme=sys.argv[1], calibration=texts(3), resume=sys.argv[2])
"""


@pytest.mark.parametrize("scheme", ["int4_g32+awq+gptq", "nvfp4_static"])
def test_a_killed_run_goes_on(scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-c", SCRIPT, scheme, str(tmp_path)]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests)}
    killed = subprocess.run(command, cwd=tests, env=environment, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"run.json", "part-00000.safetensors", "part-00001.safetensors"} <= names
    assert "part-00002.safetensors" not in names and "part-00002.safetensors.tmp" in names

    options: dict[str, Any] = {"scheme": scheme, "calibration": texts(3)}
    expected = gqc.quantize(llama(3), **options)
    done = observed(monkeypatch)
    assert_same_models(gqc.quantize(llama(3), **options, resume=tmp_path), expected)
    assert done == [2, 3]  # blocks; what is outside of them holds nothing to observe
    assert_same_models(gqc.quantize(llama(3), **options, resume=tmp_path), expected)
    assert done == [2, 3]


def observed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of the files of parts that are quantized from here on, blocks only."""
    done: list[int] = []
    save = gqc.quantization.journal.Journal.save

    def noted(self: Any, number: int, result: Any) -> None:
        if result.weights:
            done.append(number)
        save(self, number, result)

    monkeypatch.setattr(gqc.quantization.journal.Journal, "save", noted)
    return done


@pytest.mark.parametrize("scheme", ["mxfp4+hadamard", "int4_g32", "nvfp4"])
def test_weights_of_every_form_read_back(scheme: str, tmp_path: Path) -> None:
    for build in (llama, gpt2):
        folder = tmp_path / build.__name__
        first = gqc.quantize(build(), scheme=scheme, resume=folder)
        assert_same_models(gqc.quantize(build(), scheme=scheme, resume=folder), first)


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    model, inputs = Experts(), [torch.ones(2, 32)]
    options: dict[str, Any] = {"scheme": "int4_g32+gptq", "calibration": inputs, "seed": 1}
    gqc.quantize(model, **options, resume=tmp_path)
    other = Experts()
    other.late.bias.data[0] = 7  # pyright: ignore[reportOptionalMemberAccess]
    for changed, words in (
        ({"scheme": "int3_g32+gptq"}, "another scheme:"),
        ({"seed": 2}, "another seed:"),
        ({"calibration": [torch.ones(3, 32)]}, "another calibration:"),
        ({"ignore": ["late"], "seed": 5}, "another scheme, seed:"),
    ):
        with pytest.raises(GqcError, match=f"holds an interrupted run of {words}"):
            gqc.quantize(model, **{**options, **changed}, resume=tmp_path)
    with pytest.raises(GqcError, match="an interrupted run of another model:"):
        gqc.quantize(other, **options, resume=tmp_path)


def test_damaged_and_foreign_folders_are_refused(tmp_path: Path) -> None:
    model, options = Experts(), dict[str, Any](scheme="int4_g32")
    gqc.quantize(model, **options, resume=tmp_path)
    part = tmp_path / "part-00001.safetensors"
    part.write_bytes(part.read_bytes()[:-40])
    with pytest.raises(GqcError, match=r"part-00001\.safetensors is damaged: .* remove it"):
        gqc.quantize(model, **options, resume=tmp_path)
    part.unlink()
    gqc.quantize(model, **options, resume=tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(GqcError, match="cannot resume in"):
        gqc.quantize(model, **options, resume=tmp_path)
    (tmp_path / "run.json").write_text(json.dumps([]))
    with pytest.raises(GqcError, match="an interrupted run of another gqc, model"):
        gqc.quantize(model, **options, resume=tmp_path)
    (tmp_path / "run.json").unlink()
    with pytest.raises(GqcError, match="is not empty, and no interrupted run"):
        gqc.quantize(model, **options, resume=tmp_path)
    with pytest.raises(GqcError, match="cannot resume in"):
        gqc.quantize(model, **options, resume=tmp_path / "part-00001.safetensors")
