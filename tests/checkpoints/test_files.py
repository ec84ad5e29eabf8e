"""The files of a checkpoint: indices, shards, headers."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from checkpoints.packed import plain
from safetensors.torch import save_file

from gqc.checkpoints import files
from gqc.checkpoints.files import Tensors, is_finite, option
from gqc.errors import GqcError

INDEX = "model.safetensors.index.json"


@pytest.mark.parametrize(
    "place",
    [
        *("../model.safetensors", "/etc/model.safetensors", "sub/model.safetensors"),
        *("..\\model.safetensors", "C:model.safetensors", ".safetensors", "model.bin", ""),
    ],
)
def test_indices_do_not_leave_the_folder(place: str, tmp_path: Path) -> None:
    sample = plain(3)
    index = json.loads(sample.files[INDEX])
    index["weight_map"]["model.layers.0.weight"] = place
    sample.files[INDEX] = json.dumps(index).encode()
    (tmp_path.parent / "model.safetensors").write_bytes(b"")
    with pytest.raises(GqcError, match="is not the name of a safetensors file beside it"):
        sample.open(tmp_path)


def test_missing_shards_are_named(tmp_path: Path) -> None:
    sample = plain(3)
    del sample.files["model-00002-of-00003.safetensors"]
    with pytest.raises(GqcError, match=r"missing model-00002-of-00003.*fetch all 3 shards"):
        sample.open(tmp_path)


def test_an_index_must_tell_the_truth(tmp_path: Path) -> None:
    sample = plain(3)
    index = json.loads(sample.files[INDEX])
    index["weight_map"]["lm_head.weight"] = "model-00001-of-00003.safetensors"
    sample.files[INDEX] = json.dumps(index).encode()
    with pytest.raises(GqcError, match=r"lm_head.weight in model-00001.*does not hold it"):
        sample.open(tmp_path)


def test_a_tensor_is_in_one_shard(tmp_path: Path) -> None:
    sample = plain(3)
    shards = [name for name in sample.files if name.startswith("model-")]
    sample.files[shards[1]] = sample.files[shards[0]]
    with pytest.raises(GqcError, match=r"model\.layers\.\d\.weight is in model-00001"):
        sample.open(tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"{", b"\xff", b"[" * 100_000, b"{} {}"])
def test_json_must_be_an_object(content: bytes, tmp_path: Path) -> None:
    for name, sample in (("config.json", plain(1)), (INDEX, plain(3))):
        sample.files[name] = content
        with pytest.raises(GqcError, match=name):
            sample.open(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1])
def test_truncated_files_are_refused(keep: int, tmp_path: Path) -> None:
    sample = plain(1)
    sample.files["model.safetensors"] = sample.files["model.safetensors"][:keep]
    with pytest.raises(GqcError, match=r"model\.safetensors: no readable safetensors file"):
        sample.open(tmp_path)


def test_files_that_are_too_long_are_refused(tmp_path: Path) -> None:
    sample = plain(1)
    sample.files["model.safetensors"] += b"\0"
    with pytest.raises(GqcError, match="not fully covered"):
        sample.open(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_inf_and_nan_are_found_wherever_they_are(dtype: torch.dtype) -> None:
    for value in (math.inf, -math.inf, math.nan):
        for place in (0, 5, 98):
            tensor = torch.randn(99, generator=torch.Generator().manual_seed(place)).to(dtype)
            assert is_finite(tensor)
            tensor[place] = value
            assert not is_finite(tensor) and not is_finite(tensor.view(3, 33))
    assert is_finite(torch.zeros(0, dtype=dtype))


def test_options_have_a_kind() -> None:
    assert option({"bits": 4}, "bits", int) == 4
    assert option({"bits": None}, "bits", int, 3) == 3
    for value in (True, "4", 4.0, [4]):
        with pytest.raises(GqcError, match=r"bits is .*, expected int"):
            option({"bits": value}, "bits", int)
    with pytest.raises(GqcError, match="bits is None, expected int"):
        option({}, "bits", int)


@pytest.mark.parametrize(("tensors", "elements", "opened"), [(8, 1 << 15, 8), (512, 16, 1)])
def test_a_file_is_opened_anew_once_reading_took_as_long(
    tensors: int, elements: int, opened: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So large tensors leave memory when the next is read, and many small ones take no time."""
    path = tmp_path / "model.safetensors"
    save_file({f"t{i}": torch.full((elements,), float(i)) for i in range(tensors)}, path)
    source, opens = Tensors([path]), []
    real = files.open_file
    monkeypatch.setattr(files, "open_file", lambda path: opens.append(path) or real(path))
    for i in range(tensors):
        assert (source.read(f"t{i}") == i).all()
    assert len(opens) == opened
