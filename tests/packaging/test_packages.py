"""The namespace: top-level folders gqc, dialects, passes, codegen are one package, gqc."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FOLDERS = SETUPTOOLS["package-dir"]  # package name → top-level folder


def package_name(folder: Path) -> str:
    top, *rest = folder.relative_to(ROOT).parts
    (package,) = (name for name, mapped in FOLDERS.items() if mapped == top)
    return ".".join([package, *rest])


def source_files() -> dict[str, Path]:
    """Path inside the installed tree → path here, for every Python file of the packages."""
    files = (path for top in FOLDERS.values() for path in sorted((ROOT / top).rglob("*.py")))
    return {f"{package_name(p.parent).replace('.', '/')}/{p.name}": p for p in files}


def test_every_package_folder_is_listed() -> None:
    found = {package_name(path.parent) for path in source_files().values()}
    assert found == set(SETUPTOOLS["packages"])


def test_every_listed_package_has_an_init() -> None:
    packages = {name.replace(".", "/") + "/__init__.py" for name in SETUPTOOLS["packages"]}
    assert packages <= source_files().keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel of this tree, built without downloads from a copy (a build leaves files behind)."""
    source = tmp_path_factory.mktemp("source")
    for name in ["pyproject.toml", "README.md"]:
        (source / name).write_bytes((ROOT / name).read_bytes())
    for path in source_files().values():
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    out = tmp_path_factory.mktemp("wheel")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True)
    (built,) = out.glob("gqc-*.whl")
    return built


def test_wheel_holds_every_file_under_one_name(wheel: Path) -> None:
    names = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    assert names == source_files().keys()


def test_wheel_installs_and_imports(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "import gqc.dialects, gqc.passes, gqc.codegen.triton, gqc.tools\n"
        "print(gqc.dialects.__file__, gqc.codegen.triton.__file__, sep='\\n')"
    )
    # -I and -S: neither this checkout nor the editable install can lend a module.
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", with_dependencies(code), str(site)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert all(line.startswith(str(site)) for line in done.stdout.splitlines()), done.stdout


def with_dependencies(code: str) -> str:
    """Third-party packages stay importable without `site`, which would bring the editable gqc."""
    import numpy

    return f"import sys; sys.path.append({str(Path(numpy.__file__).parents[1])!r})\n{code}"
