"""Safetensors written tensor by tensor: their own library reads them."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from gqc.checkpoints.shards import DTYPES, Shard, write_file
from gqc.errors import GqcError

NUMBERS = torch.Generator().manual_seed(0)


def tensor(dtype: torch.dtype, *shape: int) -> torch.Tensor:
    raw = torch.randint(0, 2, (*shape, dtype.itemsize), dtype=torch.uint8, generator=NUMBERS)
    return raw.view(dtype).view(shape)


def test_tensors_of_any_size_and_format_are_read_back(tmp_path: Path) -> None:
    """Sizes that are odd before wider elements: these must lie at multiples of their size."""
    tensors = {}
    for dtype in DTYPES:
        for shape in ((), (3,), (1, 5), (4, 6), (0, 2), (2, 3, 7)):
            tensors[f'{dtype} {shape} "ä\\'] = tensor(dtype, *shape)
    shard = Shard(tmp_path / "a.tmp", 200 * len(tensors))
    for name, each in tensors.items():
        shard.add({name: each})
    shard.close(tmp_path / "a.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert set(file.keys()) == tensors.keys()
        for name, expected in tensors.items():
            found = file.get_tensor(name)
            assert found.dtype == expected.dtype and found.shape == expected.shape
            same = found.flatten().view(torch.uint8), expected.flatten().view(torch.uint8)
            assert torch.equal(*same), name


def test_views_are_written_in_their_order(tmp_path: Path) -> None:
    shard = Shard(tmp_path / "a.tmp", 1000)
    shard.add({"t": torch.arange(32.0).view(4, 8).T, "part": torch.arange(64)[8:24]})
    shard.close(tmp_path / "a.safetensors")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("t"), torch.arange(32.0).view(4, 8).T)
        assert torch.equal(file.get_tensor("part"), torch.arange(8, 24))


def test_a_shard_is_full_by_bytes_and_by_names(tmp_path: Path) -> None:
    one = {"one": torch.zeros(100, dtype=torch.uint8)}
    shard = Shard(tmp_path / "a.tmp", 4096)
    assert shard.takes(one, limit=1)  # alone, whatever its size
    shard.add(one)
    assert shard.takes({"two": torch.zeros(100, dtype=torch.uint8)}, limit=200)
    assert not shard.takes({"two": torch.zeros(101, dtype=torch.uint8)}, limit=200)
    assert not shard.takes({"n" * 4000: torch.zeros(1)}, limit=200)


@pytest.fixture
def small_disk() -> Iterator[None]:
    """Files cannot grow beyond 4 KiB, as if the disk were full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_full_disk_is_an_error_that_names_the_file(tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(GqcError, match=r"a\.tmp cannot be written: File too large"):
        shard = Shard(tmp_path / "a.tmp", 1000)
        shard.add({"large": torch.zeros(1 << 20)})
        shard.close(tmp_path / "a.safetensors")
    with pytest.raises(GqcError, match=r"config\.json cannot be written: File too large"):
        write_file(tmp_path / "config.json", b" " * 10_000)
    assert {path.suffix for path in tmp_path.iterdir()} == {".tmp"}


def test_a_place_that_is_none_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(GqcError, match=os.strerror(20)):
        Shard(tmp_path / "file" / "a.tmp", 1000)
