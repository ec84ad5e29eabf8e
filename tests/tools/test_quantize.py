"""`gqc quantize` and `gqc inspect` of checkpoints, as processes that may be killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from checkpoints.test_write_compressed_tensors import tiny_llama
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from gqc.checkpoints.checkpoint import open_checkpoint
from gqc.errors import GqcError
from gqc.formats.block_scaled import BlockScaled
from gqc.tools.cli import app
from gqc.tools.files import inspect_checkpoint
from gqc.tools.quantize import scheme_map, size_of


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: object) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)
    assert result.exit_code == 2
    return result.stderr


@pytest.mark.parametrize("format", ["gqc", "compressed-tensors"])
def test_a_model_is_quantized_and_shown(
    format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    tiny_llama(tmp_path / "in")
    (tmp_path / "in" / "tokenizer.json").write_text("{}")
    scheme = "si4 g32 scale=bf16 quantizer=rtn scale_rule=half"
    options = ["--scheme", scheme, "--scheme", "*.mlp.*=w4a16_mxfp4", "--format", format]
    shown = run("quantize", tmp_path / "in", tmp_path / "out", *options, "--ignore", "*.o_proj")
    assert "model.layers.*.mlp.up_proj.weight (2)" in shown
    assert "ignored by pattern *.o_proj" in shown and "GB/s" in shown
    found = open_checkpoint(tmp_path / "out")
    assert found.format == format and (tmp_path / "out" / "tokenizer.json").exists()
    types = {
        name: w.type for name in found.names() if isinstance(w := found.read(name), BlockScaled)
    }
    assert len(types) == 12
    for name, type_ in types.items():
        assert str(type_.element) == ("f4E2M1FN" if ".mlp." in name else "si4")
    (line,) = (s for s in run("inspect", tmp_path / "out").splitlines() if "q_proj" in s)
    assert all(text in line for text in ("(2)", "64×64", "1x32 : bf16 : si4", "4.5"))
    listed = json.loads(run("inspect", tmp_path / "out", "--json"))
    assert {entry["name"] for entry in listed} == set(found.names())


def test_inspect_counts_bytes(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "in")
    run("quantize", tmp_path / "in", tmp_path / "out", "--scheme", "int3_g32_sym")
    contents = inspect_checkpoint(tmp_path / "out")
    dense = 2 * (96 * 64 + 5 * 64)  # the embedding, and norms
    elements = 2 * (2 * 64 * 64 + 2 * 32 * 64 + 3 * 64 * 128)
    assert contents.bytes == dense + elements * 3.5 / 8
    assert "no such file or folder" in refused("inspect", tmp_path / "nothing")
    (tmp_path / "x.bin").write_bytes(b"")
    assert "x.bin is a pickle" in refused("inspect", tmp_path / "x.bin")


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    tiny_llama(tmp_path / "in")
    start = ["quantize", tmp_path / "in", tmp_path / "out"]
    assert "unknown format 'x'" in refused(*start, "--scheme", "int4_g32", "--format", "x")
    assert "cannot hold 14 weights" in refused(
        *start, "--scheme", "int4_g32", "--format", "compressed-tensors"
    )
    assert "'5 parsecs' is no size" in refused(
        *start, "--scheme", "int4_g32", "--max-shard", "5 parsecs"
    )
    assert "two schemes for '*'" in refused(*start, "--scheme", "int4_g32", "--scheme", "int8_g32")
    assert not (tmp_path / "out").exists()


def test_schemes_are_for_patterns_or_for_all() -> None:
    text = "si4 g32 scale=bf16 quantizer=rtn scale_rule=half"
    assert scheme_map(["int4_g32", "a.*=keep", f"b={text}"]) == {
        "a.*": "keep",
        "b": text,
        "*": "int4_g32",
    }
    assert scheme_map([text]) == {"*": text}
    assert scheme_map(["int8_g32 scale=bf16", "a.*=int4_g32 scale=f32 zero=f32"]) == {
        "a.*": "int4_g32 scale=f32 zero=f32",
        "*": "int8_g32 scale=bf16",
    }


def test_what_an_error_proposes_can_be_said(tmp_path: Path) -> None:
    """Scales too large for f16 in two layers: both are named, and the remedy is one option."""
    tiny_llama(tmp_path / "in")
    (file,) = (tmp_path / "in").glob("*.safetensors")
    tensors = load_file(file)
    large = [f"model.layers.{i}.mlp.up_proj.weight" for i in (0, 1)]
    save_file({**tensors, **{name: tensors[name] * 1e8 for name in large}}, file)
    call = ["quantize", tmp_path / "in", tmp_path / "out", "--scheme"]
    words = refused(*call, "int4_g32_sym")
    assert all(name in words for name in large) and "give the scheme scale=bf16" in words
    shutil.rmtree(tmp_path / "out")
    run(*call, "int4_g32_sym", "--scheme", "*.up_proj=int4_g32_sym scale=bf16")
    found = open_checkpoint(tmp_path / "out")
    for name in large:
        weight = found.read(name)
        assert isinstance(weight, BlockScaled) and str(weight.type.scale) == "bf16"


def test_sizes() -> None:
    assert [size_of(text) for text in ("5GB", "1.5 kb", "7", "2M")] == [
        5 * 10**9,
        1500,
        7,
        2 * 10**6,
    ]
    for text in ("0", "-1GB", "GB", ""):
        with pytest.raises(GqcError, match="is no size"):
            size_of(text)


LARGE = (8192, 8192)
"""A weight that is much larger than the others, in bfloat16 134 MB."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """470 MB in four shards; no model, so that no transformers is imported."""
    folder = tmp_path_factory.mktemp("large")
    shapes = [LARGE, *[(2048, 8192)] * 10]
    pattern = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).bfloat16()
    places = {}
    for i in range(4):
        names = {f"m.{j}.up.weight": shapes[j] for j in range(i, len(shapes), 4)}
        file = f"model-{i + 1:05}-of-00004.safetensors"
        tensors = {n: pattern.repeat(s[0] * s[1] >> 20).view(s) for n, s in names.items()}
        save_file(tensors, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    (folder / "config.json").write_text("{}")
    return folder


SCRIPT = """
import sys, torch, gqc.checkpoints.save
from gqc.checkpoints.quantizing import Quantizing
from gqc.tools.cli import app
sys.path.append(sys.argv.pop(1))
from peak_memory import peak_memory
torch.set_num_threads(1)
before = peak_memory()
try:
    app(sys.argv[1:])
finally:
    print("peaks", before, peak_memory(), file=sys.stderr)
"""
TESTS = str(Path(__file__).parents[1])


def command(source: Path, out: Path, scheme: str = "int4_g128_sym") -> list[str]:
    options = ["--scheme", scheme, "--max-shard", "40MB", "--format", "compressed-tensors"]
    return [sys.executable, "-c", SCRIPT, TESTS, "quantize", str(source), str(out), *options]


def peaks(output: str) -> list[int]:
    """Most memory, in bytes, before and after."""
    return [int(number) for number in output.rsplit("peaks ", 1)[1].split()[:2]]


def shard_time(path: Path) -> int:
    return path.stat().st_mtime_ns


def test_memory_is_bounded_and_a_killed_run_goes_on(large: Path, tmp_path: Path) -> None:
    """Killed once two shards are done; the second run ends in the very bytes of one run."""
    whole = subprocess.run(command(large, tmp_path / "whole"), capture_output=True, text=True)
    assert whole.returncode == 0, whole.stderr
    (before, used), largest = peaks(whole.stderr), LARGE[0] * LARGE[1] * 2
    assert used < 4 * largest + (1 << 30)
    assert used - before < 2.5 * largest  # all weights are 3.5 times it

    process = subprocess.Popen(command(large, tmp_path / "out"), stderr=subprocess.DEVNULL)
    while not (tmp_path / "out" / "shard-00002.done").exists():
        assert process.poll() is None
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with pytest.raises(GqcError, match=r"neither model\.safetensors nor"):
        open_checkpoint(tmp_path / "out")
    done = json.loads((tmp_path / "out" / "gqc-save.json").read_text())["shards"]
    assert 1 <= len(done) < 5
    before = {shard_time(tmp_path / "out" / f"shard-{i + 1:05}.done") for i in range(len(done))}

    other = command(large, tmp_path / "out", "int8_g128_sym")[4:]
    said = refused(*other)
    assert "gqc: warning: judged by name alone" in said
    assert "interrupted run of other inputs or options" in said
    again = subprocess.run(command(large, tmp_path / "out"), capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    files = sorted(os.listdir(tmp_path / "whole"))
    assert files == sorted(os.listdir(tmp_path / "out"))
    for name in files:
        one, two = tmp_path / "whole" / name, tmp_path / "out" / name
        assert one.read_bytes() == two.read_bytes(), name
    assert before <= {*map(shard_time, (tmp_path / "out").iterdir())}  # not written again
