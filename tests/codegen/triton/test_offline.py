"""Printed kernels compile for every GPU, without one, and pass the gates."""

from __future__ import annotations

import os
import sys
from importlib.metadata import version

import pytest

from gqc.codegen.triton import KernelArtifacts, check, compile_many, compile_offline, emit
from gqc.codegen.triton.machines import MACHINES
from gqc.errors import GqcError

TRITON36 = os.environ.get("GQC_TRITON36_PYTHON")
VERSIONS = version("triton"), "3.6.0"

INT4 = "1x32 : f16 : ui4, zero = f16, zero_mode = original"

# Format, N = K, activations, and the bucket of rows (≤ 16, ≤ 64, any).
LAYERS = [
    (INT4, 4096, "f16", 0),
    ("1x32 : f8E8M0FNU : f4E2M1FN", 4096, "bf16", 0),
    ("1x? : f16 : ui3, zero = ui3, zero_mode = quantized", 1000, "bf16", 0),
    ("1x16 : f8E4M3FN : f4E2M1FN, global = f32", 4096, "bf16", 1),
    (INT4, 4096, "f16", 1),
    ("1x128 : f32 : f8E4M3FN", 4096, "bf16", 2),
    ("1x? : f16 : si8", 4096, "bf16", 1),
    ("1x32 : f8E8M0FNU : f6E2M3FN", 4096, "bf16", 1),
    (INT4, 4096, "f16", 2),
    ("1x32 : f8E8M0FNU : f6E3M2FN", 4096, "bf16", 2),
    ("1x128 : f16 : ui1, zero = f16, zero_mode = rescale", 4096, "f16", 2),
    ("1x? : bf16 : f8E5M2", 4096, "bf16", 1),
    ("1x16 : f16 : ui2, zero = f16, zero_mode = original", 576, "bf16", 0),
    ("1x32 : f8E8M0FNU : si8", 4096, "bf16", 0),
    ("1x64 : f32 : nf4", 4096, "bf16", 1),
]
EVERY = 7
"""Targets, and both Tritons, take turns: each compiles two or three of these, and tests/benchmarks
compiles what of all kernels has changed."""

TRITONS = [
    pytest.param((sys.executable, 0), id="this"),
    pytest.param(
        (TRITON36, 1),
        id="3.6",
        marks=pytest.mark.skipif(not TRITON36, reason="GQC_TRITON36_PYTHON (make test sets it)"),
    ),
]
"""Pythons that have them, and whose turn comes first."""


@pytest.fixture(scope="module", params=TRITONS)
def built(build, request: pytest.FixtureRequest) -> dict[str, list[KernelArtifacts]]:
    """What Triton makes for each target, compiled in one process."""
    python, first = request.param
    jobs = [
        (build(type_, size, size, act=act, target=target, bias=True)[bucket], target)
        for turn, target in enumerate(MACHINES, first)
        for type_, size, act, bucket in LAYERS[turn % EVERY :: EVERY]
    ]
    found: dict[str, list[KernelArtifacts]] = {target: [] for target in MACHINES}
    for (_, target), artifacts in zip(jobs, compile_many(jobs, python), strict=True):
        found[target].append(artifacts)
    assert {kernel.triton for kernel in found["sm_90"]} == {VERSIONS[first]}
    return found


@pytest.fixture(scope="module")
def hopper(build) -> KernelArtifacts:
    return compile_offline(build(INT4, 4096, 4096)[0], "sm_90")


@pytest.mark.parametrize("target", MACHINES)
def test_kernels_pass_the_gates(built: dict[str, list[KernelArtifacts]], target: str) -> None:
    assert [problem for kernel in built[target] for problem in check(kernel)] == []


def test_hopper_takes_weights_from_registers(hopper: KernelArtifacts) -> None:
    """Each packed word is copied to shared memory once, by 16 bytes; codes never go there."""
    assert hopper.sass is not None
    products = [line for line in hopper.sass.splitlines() if "HGMMA" in line]
    assert all("HGMMA.64x16x16.F32 R" in p and p.count("gdesc") == 1 for p in products)
    assert "LDGSTS.E.BYPASS.128" in hopper.instructions
    assert not [i for i in hopper.instructions if i.startswith("STS.")]
    staged_words = 64 * 128 // 8 * 4 * 4  # BN · BK codes, 8 a word, 4 bytes a word, 4 stages
    staged_x = 16 * 128 * 2 * 4
    scales = 2 * 64 * 4 * 2 * 4
    assert hopper.shared <= staged_words + staged_x + scales


def test_artifacts_hold_every_text(hopper: KernelArtifacts) -> None:
    assert "tt.dot" in hopper.ttir and "ttng.warp_group_dot" in hopper.ttgir
    assert hopper.ptx is not None and "wgmma.mma_async" in hopper.ptx
    assert hopper.amdgcn is None
    assert hopper.matrix_instructions == {"HGMMA.64x16x16.F32": 8}
    assert 0 < hopper.registers <= 255


def test_unknown_target_is_refused(build) -> None:
    with pytest.raises(GqcError, match="no GPU sm_70: choose one of sm_80, sm_86"):
        compile_offline(build(INT4, 64, 128)[0], "sm_70")


def test_what_triton_refuses_is_named_by_target(build) -> None:
    source = emit(build(INT4, 64, 128)[0])
    broken = source.replace("tl.trans(x_tile)", "x_tile")
    with pytest.raises(GqcError, match="Triton compiled no kernel for\nsm_90: CompilationError"):
        compile_many([(source, "sm_80"), (broken, "sm_90")])


def test_python_without_triton_is_reported(build, tmp_path) -> None:
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} -S -E "$@"\n')
    python.chmod(0o755)
    with pytest.raises(GqcError, match="No module named 'triton'"):
        compile_offline(build(INT4, 64, 128)[0], "sm_90", str(python))
