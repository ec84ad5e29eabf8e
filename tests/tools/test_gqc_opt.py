"""gqc-opt on the command line: round trip, stock xdsl-opt, passes, targets, errors."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(sys.executable).parent

GROUPED = """\
builtin.module {
  func.func @forward(%x : tensor<?x64xf32>) -> tensor<?x32xf32> {
    %w = gq.weight @fc.weight : tensor<32x64xf32>
    %q = gq.qcast %w by "rtn" "absmax" : tensor<32x64xf32> \
-> tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>
    %y = gq.matmul_t %x, %q : (tensor<?x64xf32>, \
tensor<32x64x!gq.block_scaled<1x32 : f16 : si4>>) -> tensor<?x32xf32>
    func.return %y : tensor<?x32xf32>
  }
}
"""


def run(tool: str, *args: str, text: str = GROUPED) -> subprocess.CompletedProcess[str]:
    command = [str(SCRIPTS / tool), *args]
    return subprocess.run(command, input=text, text=True, capture_output=True)


@pytest.mark.parametrize("tool", ["gqc-opt", "xdsl-opt"])
def test_reads_and_prints_a_grouped_module(tool: str) -> None:
    """Stock xdsl-opt too: the dialects come through the `xdsl.universe` entry point."""
    once = run(tool)
    assert once.returncode == 0, once.stderr
    assert "gq.matmul_t %x, %q" in once.stdout
    assert run(tool, text=once.stdout).stdout == once.stdout


def test_lists_our_passes_and_targets() -> None:
    from gqc.passes import PASSES

    shown = "".join(run("gqc-opt", "--help").stdout.split())  # argparse wraps lines at hyphens
    assert "quantize-weights" in PASSES
    assert all(name in shown for name in [*PASSES, "triton", "llvm"])


def test_every_pass_bears_its_name() -> None:
    from gqc.passes import PASSES

    assert {name: load().name for name, load in PASSES.items()} == {name: name for name in PASSES}


@pytest.mark.parametrize("target", ["triton", "llvm"])
def test_target_without_kernels_says_so(target: str) -> None:
    done = run("gqc-opt", "-t", target)
    assert done.returncode == 1
    assert "no tile.kernel" in done.stderr and "lower-to-tile" in done.stderr
    assert "Traceback" not in done.stderr


def test_llvm_for_a_gpu_kernel_says_what_to_do() -> None:
    sm_90 = "{target=sm_90}"
    passes = ("legalize", "assign-layouts", "split-m-buckets", "lower-to-tile")
    pipeline = ",".join(f"{name}{sm_90}" for name in passes)
    done = run("gqc-opt", "-p", pipeline, "-t", "llvm", text=GROUPED.replace("f32", "f16"))
    assert done.returncode == 1
    assert "is tiled for sm_90, not for cpu" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_verifier_error_is_said_without_a_traceback() -> None:
    done = run("gqc-opt", text=GROUPED.replace("1x32 :", "1x48 :"))
    assert done.returncode == 1
    assert "C1" in done.stderr and "Traceback" not in done.stderr


def test_a_parse_error_shows_the_place() -> None:
    done = run("gqc-opt", text=GROUPED.replace("si4", "si9"))
    assert done.returncode == 1
    assert done.stderr.startswith("gqc-opt: stdin:4:92: gq.block_scaled C2: si9 is not an element")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    "pipeline, named",
    [("no-such-pass", "no-such-pass"), ("recognize-linears{no-such-option=1}", "no_such_option")],
)
def test_a_wrong_pipeline_is_refused(pipeline: str, named: str) -> None:
    done = run("gqc-opt", "-p", pipeline)
    assert done.returncode != 0
    assert named in done.stderr and "Traceback" not in done.stderr


KERNEL = """\
tile.kernel @k(%x : memref<?x64xf32>, %y : memref<?x64xf32>) tile<1, 64> {
  %m = tile.program_id 0
  %c0 = arith.constant 0 : index
  %t = tile.load %x[%m, %c0] : memref<?x64xf32> -> vector<1x64xf32>
  tile.store %t, %y[%m, %c0] : vector<1x64xf32>, memref<?x64xf32>
}
"""
LATE = KERNEL.replace("%c0]", "%late]", 1)
MOVED = KERNEL.replace("  %c0 = arith.constant 0 : index\n", "").replace(
    "}\n", "  %c0 = arith.constant 0 : index\n}\n"
)
SINE = KERNEL.replace("tile.store %t", "%s = math.sin %t : vector<1x64xf32>\n  tile.store %s")
FLOAT = KERNEL.replace("0 : index\n", "0 : index\n  %f = arith.constant 1.0 : f32\n")


@pytest.mark.parametrize(
    "text, arguments, said",
    [
        (b"func.func @f() {\n  \xff\n}", (), ":2:3: the file is not UTF-8: invalid start byte"),
        (b'"a"() {a = "' + b"a b " * 99, (), ":1:12: a string does not end"),
        (b"(" * 100000, (), "1:1"),
        (KERNEL.replace("memref<?x64", "memref<?x", 1), (), ":1:"),
        (MOVED, (), "%c0 is used before it is defined; in `%t = tile.load %x[%m, %c0]"),
        (LATE, (), "late"),
        (SINE, ("-t", "llvm"), "the CPU emitter does not print math.sin here: no rule lowers it; in"
         " `%s = math.sin %t : vector<1x64xf32>` in tile.kernel @k"),
        (SINE, ("-t", "triton"), "the Triton emitter does not print math.sin here: it is neither"),
        (FLOAT, ("-t", "llvm"), "does not print arith.constant here: constants are of type index"),
        (GROUPED, ("-p", "assign-layouts{target=sm_90}"), "assign-layouts takes a module of the "
         "stage 'legal': gq.matmul_t: no decision says how it is done; in `%y = gq.matmul_t"),
        (GROUPED, ("-p", "lower-to-tile{target=sm_90}"), "lower-to-tile takes a module of the "
         "stage 'kernels': gq.matmul_t: no decision says how it is done; in"),
        (GROUPED, ("-p", "legalize{target=sm_70}"), "unknown target 'sm_70'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_one_line(
    tmp_path: Path, text: bytes | str, arguments: tuple[str, ...], said: str
) -> None:
    """What, and where: status 1, and no more."""
    from gqc.tools.gqc_opt import main

    path = tmp_path / "damaged.mlir"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(SystemExit) as end:
        main(args=[str(path), *arguments])
    message = str(end.value.code)
    assert message.startswith("gqc-opt: ") and said in message and "internal" not in message
    assert len(message.splitlines()) == 1


def test_an_error_of_our_own_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the pass; only --debug shows the traceback."""
    from gqc.passes.legalize import Legalize
    from gqc.tools.gqc_opt import main

    monkeypatch.setattr(Legalize, "apply", lambda *args: {}["lost"])
    path = tmp_path / "fine.mlir"
    path.write_text(GROUPED)
    with pytest.raises(SystemExit) as end:
        main(args=[str(path), "-p", "legalize{target=sm_90}"])
    said = "gqc-opt: internal error in pass legalize: KeyError: 'lost'; please report it"
    assert str(end.value.code).startswith(said)


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gqc.tools.gqc_opt import main

    path = tmp_path / "broken.mlir"
    path.write_text("func.func @")
    with pytest.raises(SystemExit):
        main(args=[str(path), "--debug"])
    assert "Traceback" in capsys.readouterr().err
