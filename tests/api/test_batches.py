"""Whether a row's bits depend on the batch that it is in: as measured, as analysed, as reported."""

from __future__ import annotations

import importlib.util
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from tiers import runs_here
from torch import nn

import gqc
from gqc.errors import GqcError
from gqc.targets import TARGETS

MOST = 70
CASES = {
    # scheme, activations, tier: whether a row has the same bits in any batch without the option.
    ("int4_g128", torch.bfloat16, "avx512bf16"): True,
    ("w4a16_nvfp4", torch.bfloat16, "avx512bf16"): False,
    ("w4a16_nvfp4", torch.bfloat16, "avx2"): False,
    ("int4_g32", torch.float32, "avx512bf16"): False,
    ("int3_g16", torch.float32, "avx2"): True,
    ("w4a8_g32", torch.bfloat16, "avx2"): True,
}


def layer(k: int, n: int, dtype: torch.dtype) -> nn.Linear:
    """A layer whose weights are the same in both halves of K."""
    torch.manual_seed(1)
    linear = nn.Linear(k, n).to(dtype)
    with torch.no_grad():
        linear.weight[:, k // 2 :] = linear.weight[:, : k // 2]
        linear.bias.mul_(1e-3)
    return linear


def cancelling(rows: int, k: int, dtype: torch.dtype) -> torch.Tensor:
    """Rows that this layer takes to about 0, so that every rounding shows in the result."""
    x = 3 * torch.randn(rows, k)
    x[:, k // 2 :] = -x[:, : k // 2]
    x[:, -1] += 1e-3 * torch.randn(rows)
    return x.to(dtype)


def batches_that_differ(compiled: Any, x: torch.Tensor) -> list[int]:
    """Numbers of rows, up to those of x, at which a row has other bits than alone."""
    alone = torch.cat([compiled(row) for row in x.split(1)])
    bits = torch.int32 if x.dtype == torch.float32 else torch.int16
    counts = range(1, len(x) + 1)
    return [m for m in counts if not torch.equal(compiled(x[:m]).view(bits), alone[:m].view(bits))]


@pytest.mark.parametrize(("scheme", "dtype", "tier"), CASES)
@torch.no_grad()
def test_every_number_of_rows(scheme, dtype, tier):
    runs_here(tier)
    k, n = 1664, 80
    linear, x = layer(k, n, dtype), cancelling(MOST, k, dtype)
    options: Any = {"scheme": scheme, "target": f"cpu_{tier}", "progress": False}
    usual = gqc.compile(linear, **options)
    alike = CASES[scheme, dtype, tier]
    (row,) = usual.report().rows
    assert (row.batch == "") == alike
    assert (batches_that_differ(usual, x) == []) == alike
    if not alike:
        compiled = gqc.compile(linear, deterministic="batch", **options)
        assert batches_that_differ(compiled, x) == []
        assert "in 1 of 1 quantized layers" in str(compiled.report())
        assert "in 0 of 1 quantized layers" in str(usual.report())


@torch.no_grad()
def test_a_long_k_of_few_columns():
    """K is not divided among programs, which single rows alone would have."""
    linear, x = layer(4096, 48, torch.bfloat16), cancelling(20, 4096, torch.bfloat16)
    options: Any = {"scheme": "int4_g128", "target": "cpu", "progress": False}
    usual, compiled = (
        gqc.compile(linear, **options),
        gqc.compile(linear, deterministic="batch", **options),
    )
    assert "in how many parts K is summed up" in usual.report().rows[0].batch
    assert batches_that_differ(compiled, x) == []


def test_a_scale_of_the_batch_is_refused():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    with pytest.raises(GqcError, match=r"from all rows[^!]*\n  0\n  1\nchoose .*nvfp4_static"):
        gqc.compile(model, scheme="nvfp4", target="cpu", deterministic="batch")
    row, _ = gqc.compile(model, scheme="nvfp4", target="cpu").report().rows
    assert "the tensor scale of x is taken from all rows" in row.batch


def test_another_value_is_refused():
    with pytest.raises(GqcError, match="deterministic is 'yes': give 'batch', or leave it out"):
        gqc.compile(nn.Linear(64, 64), target="cpu", deterministic="yes")  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def page() -> ModuleType:
    """The script that writes the tables of docs/determinism.md."""
    path = Path(__file__).parents[2] / "docs" / "determinism.py"
    spec = importlib.util.spec_from_file_location("determinism_page", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_says_what_the_compiler_does(page):
    """Some cells of each table, by chance."""
    text = page.PAGE.read_text(encoding="utf-8").partition(page.END)[0]
    chance = random.Random(0)
    for activation in page.ACTIVATIONS:
        table = text.partition(f"\n{activation} activations:\n")[2].partition(" activations:")[0]
        lines = [line[2:-2].split(" | ") for line in table.splitlines() if line.startswith("| ")]
        (_, *columns), *rows = lines
        assert sum(len(names.split(", ")) for names, *_ in rows) == len(page.SCHEMES)
        for _ in range(12):
            names, *cells = chance.choice(rows)
            at = chance.randrange(len(columns))
            scheme = chance.choice(names.split(", ")).strip("`")
            target = chance.choice(columns[at].split(", "))
            assert page.cell(scheme, target, activation) == cells[at], (scheme, target)


SAMPLE = ("int3_g16", "int4_g128", "w4a16_nvfp4", "mxfp8", "w4a8_g32")


@pytest.mark.parametrize("activation", ["bf16", "f32"])
@pytest.mark.parametrize("target", TARGETS)
def test_one_order_on_every_target(page, target, activation):
    for scheme in SAMPLE if activation == "bf16" else SAMPLE[1:3]:
        assert page.cell(scheme, target, activation, "batch", n=64) in ("any", "-")
