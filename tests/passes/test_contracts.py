"""The contracts between stages: a module that breaks one is refused, with the reason."""

from __future__ import annotations

from typing import Any

import pytest
from xdsl.utils.exceptions import VerifyException

from gqc.dialects.text import parse_ir
from gqc.errors import GqcError
from gqc.passes.contracts import ALLOWED, verify_stage
from gqc.passes.pipeline import extend, pipeline, run_stages
from gqc.passes.recognize_linears import RecognizeLinears

TYPE = "tensor<8x32x!gq.block_scaled<1x32 : f16 : si4>>"
WEIGHT = "%w = gq.weight @w : tensor<8x32xf32>"
QCAST = f'%q = gq.qcast %w by "rtn" "no_clip" : tensor<8x32xf32> -> {TYPE}'
PARTS = "tensor<8x4xi32>, tensor<1x8xf16>"
PACK = f"%p, %s = gq.pack %q layout <k_words> : {TYPE} -> {PARTS}"
UNPACK = f"%u = gq.unpack %p, %s layout <k_words> : {PARTS} -> {TYPE}"
DCAST = f"%d = gq.dcast %q : {TYPE} -> tensor<8x32xf32>"
MATMUL = "%y = gq.matmul_t %x, {w} {how} : (tensor<?x32xf32>, {type}) -> tensor<?x8xf32>"
PLAIN = MATMUL.format(w="%w", how="", type="tensor<8x32xf32>")
KEPT = MATMUL.format(w="%w", how='decision <kept, "why">', type="tensor<8x32xf32>")
ON_CODES = MATMUL.format(w="%q", how="", type=TYPE)
DECIDED = MATMUL.format(w="%q", how='decision <emulated, "why">', type=TYPE)
NATIVE = MATMUL.format(w="%q", how='decision <native, "why">', type=TYPE)
CAST = MATMUL.format(w="%d", how='decision <emulated, "why">', type="tensor<8x32xf32>")
LAUNCH = (
    "%y = gq.launch [@mm] rows [-1] on (%x : tensor<?x32xf32>)"
    " weights (%w : tensor<8x32xf32>) -> tensor<?x8xf32>"
)
CALL_ON_CODES = (
    f'%y = fx.call "aten.linear.default"(%x, %q) : (tensor<?x32xf32>, {TYPE}) -> tensor<?x8xf32>'
)
STRAY = "%c = arith.constant 0 : index"
ONLY_MATMULS = "gq.qcast: only gq.matmul_t may read a block-scaled value"
NO_OP = "{op}: is not an operation of this stage"


def module(*lines: str, kernel: str = "") -> Any:
    return parse_ir(
        "func.func @forward(%x : tensor<?x32xf32>) {\n"
        + "\n".join(lines)
        + f"\nfunc.return\n}}\n{kernel}"
    )


BROKEN = [
    ("imported", (WEIGHT, QCAST), NO_OP.format(op="gq.qcast")),
    ("imported", (WEIGHT, LAUNCH), NO_OP.format(op="gq.launch")),
    ("imported", (STRAY,), NO_OP.format(op="arith.constant")),
    ("grouped", (WEIGHT, LAUNCH), NO_OP.format(op="gq.launch")),
    ("grouped", (WEIGHT, QCAST, PACK), ONLY_MATMULS),
    ("grouped", (WEIGHT, QCAST, DCAST), ONLY_MATMULS),
    ("grouped", (WEIGHT, QCAST, CALL_ON_CODES), ONLY_MATMULS),
    ("legal", (WEIGHT, PLAIN), "gq.matmul_t: no decision says how it is done"),
    ("legal", (WEIGHT, QCAST, ON_CODES), "gq.matmul_t: no decision says how it is done"),
    ("legal", (WEIGHT, QCAST, DECIDED), "gq.matmul_t: reads block-scaled codes without a gq.dcast"),
    ("legal", (WEIGHT, LAUNCH), NO_OP.format(op="gq.launch")),
    ("kernels", (WEIGHT, LAUNCH), "gq.launch: launches a kernel that the module does not hold"),
    ("kernels", (WEIGHT, QCAST), NO_OP.format(op="gq.qcast")),
    ("kernels", (WEIGHT, QCAST, PACK), NO_OP.format(op="gq.qcast")),
    ("kernels", (WEIGHT, QCAST, DCAST, CAST), NO_OP.format(op="gq.qcast")),
]  # fmt: skip


@pytest.mark.parametrize(
    "stage, lines, message", BROKEN, ids=[f"{s} {i}" for i, (s, _, _) in enumerate(BROKEN)]
)
def test_a_broken_contract_is_refused(stage: str, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(VerifyException) as error:
        verify_stage(module(*lines), stage)
    assert str(error.value) == f"contract {stage!r}: {message}"


KERNEL = "tile.kernel @mm(%x : memref<?x32xf32>, %y : memref<?x8xf32>) tile<16, 8> {}"


@pytest.mark.parametrize(
    "stage, lines",
    [
        ("imported", (WEIGHT, PLAIN)),
        ("grouped", (WEIGHT, QCAST, ON_CODES)),
        ("grouped", (WEIGHT, KEPT)),
        ("legal", (WEIGHT, QCAST, PACK, UNPACK, DCAST, CAST)),
        ("legal", (WEIGHT, QCAST, NATIVE)),
        ("kernels", (WEIGHT, LAUNCH)),
        ("kernels", (WEIGHT, KEPT)),
    ],
)
def test_a_kept_contract_passes(stage: str, lines: tuple[str, ...]) -> None:
    verify_stage(module(*lines, kernel=KERNEL), stage)


def test_every_operation_is_verified_too() -> None:
    broken = module(WEIGHT, PLAIN)
    matmul = next(op for op in broken.walk() if op.name == "gq.matmul_t")
    matmul.operands[1] = matmul.operands[0]
    with pytest.raises(VerifyException, match=r"gq\.matmul_t C1"):
        verify_stage(broken, "imported")


def test_stages_are_extended_by_name() -> None:
    stages = pipeline(("*=int4_g32",), "sm_90")
    mine = RecognizeLinears()
    longer = extend(stages, {"imported": [mine]})
    assert [s.passes for s in longer] == [(mine,), *(s.passes for s in stages[1:])]
    with pytest.raises(GqcError, match="no stage is called lowered: there are imported, grouped,"):
        extend(stages, {"lowered": [mine], "legal": []})


@pytest.mark.parametrize("target", ["sm_90", "cpu_avx2"])
def test_the_pipeline_keeps_its_contracts(linear: Any, target: str) -> None:
    """One stage for each contract, in order; what a pass leaves out, the next stage misses."""
    stages = pipeline(("*=int4_g32",), target)
    assert [stage.name for stage in stages] == list(ALLOWED)
    seen: list[str] = []
    run_stages(linear(8, 32, "bf16"), stages, lambda name, module: seen.append(name))
    assert seen == [name for s in stages for name in (*(p.name for p in s.passes), s.name)]

    skipped = [s for s in stages if s.name != "legal"]
    with pytest.raises(VerifyException, match=r"contract 'kernels': gq\.qcast"):
        run_stages(linear(8, 32, "bf16"), skipped)


def test_locations_survive_every_pass(linear: Any) -> None:
    from gqc.dialects.text import print_ir

    text = print_ir(linear(8, 32, "bf16"))
    text = text.replace(
        "-> tensor<?x8xbf16>\n    func.return",
        '-> tensor<?x8xbf16> loc("model.fc")\n    func.return',
    )
    located = parse_ir(text)
    run_stages(located, pipeline(("model.*=int4_g32",), "sm_90"))
    launches = [line for line in print_ir(located).splitlines() if "gq.launch" in line]
    assert len(launches) == 1 and launches[0].endswith('loc("model.fc")')
