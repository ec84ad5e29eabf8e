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
