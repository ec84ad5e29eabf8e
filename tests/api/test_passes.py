"""Passes of a user's own in the pipeline."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import nn
from xdsl.context import Context
from xdsl.dialects.builtin import ModuleOp
from xdsl.passes import ModulePass
from xdsl.rewriter import Rewriter

import gqc
from gqc.dialects import gq
from gqc.schemes import preset


@dataclass(frozen=True)
class Widen(ModulePass):
    """Quantize weights of at most `rows` rows by int8_g32."""

    name = "widen"
    rows: int

    def apply(self, ctx: Context, op: ModuleOp) -> None:
        for cast in [op for op in op.walk() if isinstance(op, gq.QcastOp)]:
            if gq.tensor_shape(cast.source)[0] <= self.rows:
                new = gq.QcastOp(cast.source, "rtn", "minmax", preset("int8_g32").type())
                Rewriter.replace_op(cast, new)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 16))


def test_runs_at_the_end_of_its_stage(model):
    x = torch.randn(3, 64)
    passes = {"grouped": [Widen(rows=16)]}
    compiled = gqc.compile(model, (x,), scheme="int4_g32", target="cpu", passes=passes)
    assert [row.bits for row in compiled.report().rows] == [5.0, 9.0]
    assert "ui8" in compiled.ir("widen") and "ui8" not in compiled.ir("quantize-weights")
    plain = gqc.compile(model, (x,), scheme={"0": "int4_g32", "2": "int8_g32"}, target="cpu")
    assert torch.equal(compiled(x), plain(x))


def test_a_pass_called_as_a_stage(model):
    @dataclass(frozen=True)
    class Legal(Widen):
        name = "legal"

    with pytest.raises(gqc.GqcError, match="a pass cannot be called legal: that is a stage"):
        gqc.compile(model, scheme="int4_g32", target="cpu", passes={"grouped": [Legal(rows=16)]})


def test_unknown_stage(model):
    with pytest.raises(gqc.GqcError, match="no stage is called lowered: there are imported"):
        gqc.compile(model, scheme="int4_g32", target="cpu", passes={"lowered": [Widen(rows=16)]})
