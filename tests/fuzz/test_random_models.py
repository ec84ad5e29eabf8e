"""Random models and damaged dumps, each by its seed; `make fuzz` tries many more."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fuzz import mutations, random_models
from xdsl.context import Context
from xdsl.dialects import arith
from xdsl.dialects.builtin import IndexType, IntegerAttr, ModuleOp
from xdsl.passes import ModulePass
from xdsl.rewriter import InsertPoint, Rewriter

from gqc.dialects import tile
from gqc.passes.pipeline import Stage

FEW = 10
"""Random models of the tests; `pytest -m fuzz` has `MODELS` in all, beginning with `SEED`."""

SEED, MODELS = (int(os.environ.get(k, v)) for k, v in (("SEED", "0"), ("COUNT", "300")))
MUTATIONS = (*range(150), 15295, 18597)
"""Seeds; the last ones found faults."""


@pytest.mark.parametrize("seed", range(FEW))
def test_a_random_model(seed: int) -> None:
    assert random_models.attempt(seed) is None


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(SEED, SEED + MODELS))
def test_one_of_many_random_models(seed: int) -> None:
    assert random_models.attempt(seed) is None


class Wrong(ModulePass):
    """A fault: kernels read the scales of each panel's first group for all its groups."""

    name = "wrong"

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for load in op.walk():
            if isinstance(load, tile.LoadOp) and load.source.name_hint == "scale":
                zero = arith.ConstantOp(IntegerAttr(0, IndexType()))
                Rewriter.insert_op(zero, InsertPoint.before(load))
                load.operands[len(load.offsets) - 1] = zero.result


def test_a_wrong_pass_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is named."""

    def prepared(self: Any, stage: Stage) -> Stage:
        wrong = (Wrong(),) if stage.name == "kernels" else ()
        return replace(stage, passes=(*stage.passes, *wrong))

    monkeypatch.setattr(random_models.Case, "prepared", prepared)
    fault = random_models.attempt(11)
    assert fault is not None and "after wrong: result 0 errs by" in fault


def test_damaged_dumps(tmp_path: Path) -> None:
    """What cannot be read or compiled is refused: no traceback, no internal error, no hang."""
    attempts = [mutations.attempt(seed, tmp_path) for seed in MUTATIONS]
    assert [(o.kind, o.said, *a, p.name) for o, a, p in attempts if o.is_fault] == []
    assert {o.kind for o, _, _ in attempts} == {"read", "refused"}
