"""The IR of every pass and stage and every kernel: in memory, and dumped to a folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import gqc
from gqc.dialects.text import parse_ir, print_ir
from gqc.dialects.tile import KernelOp
from gqc.targets import TARGETS

PASSES = (
    "dce",
    "recognize-linears",
    "adopt-weights",
    "quantize-weights",
    "fold-channels",
    "quantize-activations",
    "merge-linears",
    "legalize",
    "assign-layouts",
    "split-m-buckets",
    "lower-channels",
    "fuse-producers",
    "lower-quantizers",
    "lower-to-tile",
    "fuse-epilogues",
    "fold-weights",
)
STAGES = {
    "imported": None,
    "grouped": "merge-linears",
    "legal": "fuse-producers",
    "kernels": "fold-weights",
}
"""The pass that ends each stage."""

UNTARGETED = ("dce", "lower-channels", "fuse-producers", "fuse-epilogues", "fold-weights")


class Dumped:
    """A small model compiled for a target with a dump, in both modes."""

    def __init__(self, folder: Path, target: str, whole: bool):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 16)).bfloat16()
        example = torch.randn(2, 64).bfloat16() if whole else None
        self.folder = folder / f"{target}-{whole}" / "new"
        self.compiled = gqc.compile(
            model, example, scheme={"0": "int4_g32"}, target=target, dump_ir=self.folder
        )

    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.mlir"))


@pytest.fixture(scope="module", params=[("cpu", True), ("cpu", False), ("sm_90", True)], ids=str)
def dumped(request, tmp_path_factory) -> Dumped:
    return Dumped(tmp_path_factory.mktemp("dump"), *request.param)


def test_files_are_numbered_in_the_order_of_passes(dumped):
    names = ["imported", *PASSES]
    assert [f.name for f in dumped.files()] == [f"{i:02}_{n}.mlir" for i, n in enumerate(names)]


def test_files_read_back(dumped):
    """What is printed of what was parsed is the file again, and each module verifies."""
    kernels = [*(dumped.folder / "kernels").glob("*.mlir")]
    assert kernels
    for file in [*dumped.files(), *kernels]:
        module = parse_ir(file.read_text())
        module.verify()
        assert print_ir(module).strip() == file.read_text().strip() or file in kernels


def test_ir_is_the_dumped_text(dumped):
    texts = {file.stem[3:]: file.read_text() for file in dumped.files()}
    for name in PASSES:
        assert dumped.compiled.ir(name) == texts[name]
    for stage, last in STAGES.items():
        assert dumped.compiled.ir(stage) == texts[last or stage]
    assert dumped.compiled.ir() == texts["fold-weights"]


def test_passes_change_what_they_are_for(dumped):
    ir = dumped.compiled.ir
    assert "aten.linear" in ir("imported") or "aten.addmm" in ir("imported")
    assert "gq.matmul_t" in ir("recognize-linears") and "gq.qcast" not in ir("recognize-linears")
    assert "gq.qcast" in ir("grouped") and "gq.dcast" not in ir("grouped")
    assert "gq.dcast" in ir("legal") and "gq.pack" in ir("legal")
    work, functions = ir("kernels").split("func.func", 1)
    assert "gq.qcast" in work and "gq.qcast" not in functions and "tile.kernel" in functions


def test_one_source_for_each_kernel(dumped):
    kernels = dumped.compiled.kernels
    suffix = {"cpu": ".ll", "triton": ".py"}[TARGETS[kernels[0].target].backend]
    names = {kernel.name for kernel in kernels}
    assert len(names) == len(kernels) == len(parse_kernels(dumped.compiled.ir()))
    found = {file.name for file in (dumped.folder / "kernels").iterdir()}
    assert found == {name + end for name in names for end in (".mlir", suffix)}
    for kernel in kernels:
        path = dumped.folder / "kernels" / kernel.name
        assert path.with_name(kernel.name + suffix).read_text() == kernel.source
        (op,) = parse_kernels(path.with_name(f"{kernel.name}.mlir").read_text())
        assert op.sym_name.data == kernel.name and kernel.name in kernel.source


def parse_kernels(text: str) -> list[KernelOp]:
    return [op for op in parse_ir(text).walk() if isinstance(op, KernelOp)]


def test_gqc_opt_goes_on_from_a_dump(dumped):
    """The rest of the passes, run by gqc-opt on a dumped file, give the dump's last file."""
    target, start = dumped.compiled.kernels[0].target, PASSES.index("legalize")
    passes = ",".join(n if n in UNTARGETED else f"{n}{{target={target}}}" for n in PASSES[start:])
    tool = Path(sys.executable).with_name("gqc-opt")
    source = dumped.files()[start]
    done = subprocess.run([tool, "-p", passes, source], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    last = re.sub(r" loc\(.*?\)", "", dumped.files()[-1].read_text())
    assert (
        print_ir(parse_ir(done.stdout), locations=False).strip()
        == print_ir(parse_ir(last), locations=False).strip()
    )


def test_a_second_dump_replaces_the_first(tmp_path):
    """What a dump may have written goes, other files stay."""
    (tmp_path / "kernels").mkdir()
    others = [tmp_path / n for n in ("notes.mlir", "1_x.mlir", "00_a.txt", "kernels/mine.py")]
    for path in others:
        path.write_text("mine")
    for model, target in ((nn.Linear(64, 48).bfloat16(), "sm_90"), (nn.Linear(64, 32), "cpu")):
        (tmp_path / "42_earlier.mlir").write_text("of a longer pipeline")
        options: Any = {"scheme": "int4_g32", "target": target, "dump_ir": str(tmp_path)}
        compiled: Any = gqc.compile(nn.Sequential(model), **options)
    assert "32x64" in (tmp_path / "00_imported.mlir").read_text()
    files = {path for path in tmp_path.rglob("*") if path.is_file()} - {*others}
    kernels = {f"{k.name}{end}" for k in compiled.kernels for end in (".mlir", ".ll")}
    numbered = {f"{i:02}_{name}.mlir" for i, name in enumerate(("imported", *PASSES))}
    assert {path.name for path in files} == kernels | numbered
    assert all(path.read_text() == "mine" for path in others)


def test_weights_stay_outside(dumped):
    """The size of the IR does not depend on the weights."""
    assert all("dense<" not in file.read_text() for file in dumped.files())


@pytest.mark.parametrize("whole", [True, False])
def test_progress(whole, capfd, monkeypatch):
    """A bar on stderr that ends full; stdout stays clean."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    model, x = nn.Sequential(nn.Linear(64, 48), nn.Linear(48, 16)), torch.randn(2, 64)
    options: Any = {"scheme": {"0": "int4_g32", "1": "int4_g16"}}
    gqc.compile(model, x if whole else None, progress=False, **options)
    quiet = capfd.readouterr()
    assert quiet.out == "" and "%" not in quiet.err
    compiled = gqc.compile(model, x if whole else None, progress=True, **options)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "2/2" in shown.err
    expected = gqc.compile(model, x if whole else None, **options)
    assert torch.equal(compiled(x), expected(x))


def test_a_folder_that_cannot_be(tmp_path):
    path = tmp_path / "taken"
    path.write_text("")
    with pytest.raises(gqc.GqcError, match=r"cannot dump IR into .*taken"):
        gqc.compile(nn.Sequential(nn.Linear(64, 64)), scheme="int4_g32", target="cpu", dump_ir=path)
