"""Where caches lie, with a home and without."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch

import gqc
from gqc import cache_folder
from gqc.codegen.cpu import cache, jit


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of temporary files; nothing is decided yet."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    monkeypatch.delenv("GQC_CACHE", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    cache_folder.under_home.cache_clear()
    return folder


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_variable_comes_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GQC_CACHE", str(tmp_path / "mine"))
    monkeypatch.setattr(Path, "home", no_home)
    assert cache_folder.root() == tmp_path / "mine"


def test_then_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder.root() == tmp_path / ".cache" / "gqc"


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """Warned once; kernels are kept, and by the next process found."""
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(UserWarning, match=r"no home .*Could not determine.*set GQC_CACHE") as told:
        cache.write(b"key", b"code")
    assert len(told) == 1 and cache.read(b"key") == b"code"
    folder = cache_folder.root()
    assert folder.parent == scratch and folder.stat().st_mode & 0o777 == 0o700
    cache_folder.under_home.cache_clear()
    with pytest.warns(UserWarning, match=str(folder)):
        assert cache.read(b"key") == b"code"


def test_a_home_that_holds_nothing(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    (scratch / "file").write_text("")
    monkeypatch.setenv("HOME", str(scratch / "file"))
    with pytest.warns(UserWarning, match="no home to keep it in"):
        assert cache_folder.root().parent == scratch


@pytest.mark.parametrize("kind", ["open", "link", "file"])
def test_no_code_is_taken_from_what_others_can_write(
    monkeypatch: pytest.MonkeyPatch, scratch: Path, kind: str
) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    with pytest.warns(UserWarning):
        usual = cache_folder.root()
    usual.rmdir()
    if kind == "open":
        usual.mkdir()
        usual.chmod(0o777)
    elif kind == "link":
        (scratch / "elsewhere").mkdir(mode=0o700)
        usual.symlink_to(scratch / "elsewhere")
    else:
        usual.write_text("")
    cache_folder.under_home.cache_clear()
    with pytest.warns(UserWarning):
        folder = cache_folder.root()
    assert folder.parent == scratch and folder not in (usual, scratch / "elsewhere")
    assert folder.stat().st_mode & 0o777 == 0o700


def test_a_model_runs_without_a_home(monkeypatch: pytest.MonkeyPatch, scratch: Path) -> None:
    """As in a container whose user the system does not know."""
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(jit, "linked", {})
    layer, x = torch.nn.Linear(64, 56), torch.randn(2, 64)
    compiled = gqc.compile(layer, scheme="int8_g16", target="cpu")
    with pytest.warns(UserWarning, match="no home to keep it in"):
        assert compiled(x).shape == (2, 56)
    assert list(scratch.glob("gqc-*/kernels/*.o"))
