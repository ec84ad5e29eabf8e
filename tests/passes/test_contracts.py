"""The contracts between stages: a module that breaks one is refused, with the reason."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from xdsl.utils.exceptions import VerifyException

from gqc.dialects.text import parse_ir
from gqc.errors import GqcError
from gqc.passes import PASSES
from gqc.passes.contracts import CONTRACTS, TAKES, verify_stage
from gqc.passes.pipeline import extend, pipeline, run_stages
from gqc.passes.recognize_linears import RecognizeLinears

FILES = Path(__file__).parents[1] / "lit" / "passes"
WEIGHT = "%w = gq.weight @w : tensor<8x32xf32>"
PLAIN = "%y = gq.matmul_t %x, %w : (tensor<?x32xf32>, tensor<8x32xf32>) -> tensor<?x8xf32>"
TAKEN = re.compile(r"(\w+) → (\w+)\W")


def module(*lines: str) -> Any:
    body = "\n".join(lines)
    return parse_ir(f"func.func @forward(%x : tensor<?x32xf32>) {{\n{body}\nfunc.return\n}}")


@pytest.mark.parametrize("stage", CONTRACTS)
def test_every_row_that_refuses_has_a_negative_test(stage: str) -> None:
    text = (FILES / f"contracts_{stage}.mlir").read_text(encoding="utf-8")
    missing = [
        row.says for row in CONTRACTS[stage] if row.error is not None and row.error not in text
    ]
    assert missing == []


def test_passes_say_what_they_take() -> None:
    """The first of a stage takes a module of the stage before; others go on from there."""
    stages = pipeline(("*=int4_g32",), "sm_90")
    for before, stage in itertools.pairwise(stages):
        passes = [pass_ for pass_ in stage.passes if pass_.name in PASSES]
        for place, pass_ in enumerate(passes):
            takes = stage.name if place else before.name
            assert TAKES[pass_.name] == takes
            if said := TAKEN.search(pass_.__doc__ or ""):
                assert said.groups() == (takes, stage.name), pass_.name
            else:
                pytest.fail(f"{pass_.name} does not say what it takes and leaves")


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
    assert [stage.name for stage in stages] == list(CONTRACTS)
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
