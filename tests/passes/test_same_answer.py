"""Every pass, interpreted before and after: the same answer.

Passes that only say how (legalize, layouts, schedules, folding) must not change a bit. Recognizing
a linear may change the order of a sum; quantizing is the model with its weight replaced by exactly
what the codes stand for; a kernel is held to float64 on that weight, within the rounding of sums.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from xdsl.dialects.builtin import ModuleOp

from gqc.dialects.interpret import run
from gqc.dialects.text import parse_ir, print_ir
from gqc.formats.block_scaled import BlockScaled
from gqc.passes.pipeline import run_stages
from gqc.quantizers import rtn
from gqc.schemes import Scheme, parse_scheme
from gqc.targets import TARGETS

DTYPES = {"f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
UNIT = {"f32": 2.0**-24, "bf16": 2.0**-8, "f16": 2.0**-11}
"""Half an ulp of 1."""


@st.composite
def schemes(draw: st.DrawFn) -> Scheme:
    group = draw(st.sampled_from([16, 32, 64, None]))
    scale = draw(st.sampled_from(["f16", "bf16", "f32"]))
    mode = draw(st.sampled_from(["none", "original", "rescale", "quantized"]))
    if mode == "none":
        return Scheme(f"si{draw(st.sampled_from([2, 3, 4, 8]))}", group, scale)
    bits = draw(st.sampled_from([1, 2, 3, 4, 8]))
    zero = f"ui{bits}" if mode == "quantized" else draw(st.sampled_from(["f16", "f32"]))
    return Scheme(f"ui{bits}", group, scale, mode, zero, "rtn", "minmax")


@st.composite
def cases(draw: st.DrawFn) -> dict[str, Any]:
    scheme = draw(schemes())
    target = TARGETS[draw(st.sampled_from(["sm_80", "sm_100", "gfx942", "cpu_avx512", "cpu_avx2"]))]
    blocks = draw(st.integers(1, 3))
    return {
        "scheme": scheme,
        "target": target.name,
        "n": draw(st.sampled_from([1, 24, 64, 70])),
        "k": blocks * scheme.group if scheme.group else draw(st.sampled_from([20, 64, 192])),
        "f": draw(st.sampled_from([*target.units])),
        "bias": draw(st.booleans()),
        "spelling": draw(st.sampled_from(["linear", "conv1d", "decomposed"])),
        "rows": draw(st.sampled_from([1, 2, 5, 17])),
    }


def reference(
    x: torch.Tensor, quantized: BlockScaled, bias: torch.Tensor | None, target: str, f: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """y in float64, and a bound of the error of sums in f32 and of rounding the output.

    A GPU's weight tile is rounded to the type of the activations, a CPU's is exact. Terms of a sum
    are bounded by |x|·(|q·s| + |z·s|), for a CPU sums codes and zero points apart, and takes the
    middle of the codes from both where x is f32.
    """
    dense = quantized.dequantize(torch.float64)
    if TARGETS[target].backend == "triton":
        dense = quantized.dequantize().to(x.dtype).double()
    codes = BlockScaled(quantized.type, quantized.codes, quantized.scale, quantized.zero)
    times = codes.codes.shape[1] // codes.scale.shape[1]
    middle = quantized.type.format.middle if f == "f32" else 0.0
    scaled = (codes.codes.double() - middle) * codes.scale.double().repeat_interleave(times, 1)
    y = x.double() @ dense.T
    size = x.double().abs() @ (scaled.abs() + (dense - scaled).abs()).T
    if bias is not None:
        y, size = y + bias.double(), size + bias.double().abs()
    return y, size * 2.0**-24 * (x.shape[1] ** 0.5 + 8) + y.abs() * UNIT[f] * 1.01


def corner(scheme: str, target: str, n: int, k: int, f: str, rows: int) -> dict[str, Any]:
    scheme_ = parse_scheme(scheme)
    layer = {"n": n, "k": k, "f": f, "bias": True, "spelling": "linear"}
    return {"scheme": scheme_, "target": target, "rows": rows, **layer}


RAGGED = "ui3 row scale=bf16 zero=ui3 zero_mode=quantized scale_rule=minmax"


@settings(max_examples=25, deadline=None)
@given(case=cases())
# Two groups in a word: the scale cannot wait for the sum of a step.
@example(case=corner("int1_g16", "cpu_avx512", 70, 48, "f32", 5))
# Neither N nor K fills a tile, a panel or a word; and all tiles are full.
@example(case=corner(RAGGED, "cpu_avx2", 70, 20, "bf16", 5))
@example(case=corner(RAGGED, "sm_80", 70, 20, "bf16", 17))
@example(case=corner("int4_g32", "sm_80", 128, 128, "f16", 64))
def test_every_pass(linear: Any, weights: Any, stages_over: Any, case: dict[str, Any]) -> None:
    layer = {key: case[key] for key in ("n", "k", "f", "bias", "spelling")}
    module, store = linear(**layer), weights(**layer)
    dense = store["fc.weight"].T if case["spelling"] == "conv1d" else store["fc.weight"]
    quantized = rtn(dense, case["scheme"].type(), case["scheme"].scale_rule)
    x = torch.randn(case["rows"], case["k"], generator=torch.Generator().manual_seed(1))
    x = x.to(DTYPES[case["f"]])

    answers: dict[str, torch.Tensor] = {}
    recognized: list[ModuleOp] = []

    def after(name: str, module: ModuleOp) -> None:
        """Run what a pass left, once it has been text; what a stage left is its last pass's."""
        if name in {stage.name for stage in stages[1:]}:
            return
        again = parse_ir(print_ir(module))
        answers[name] = run(again, store, (x,))[0]
        if name == "recognize-linears":
            recognized.append(again)

    stages = stages_over(store, case["target"], f"*={case['scheme']}")
    run_stages(module, stages, after)
    assert list(answers) == [s.name for s in stages[:1]] + [
        p.name for s in stages for p in s.passes
    ]

    tolerance: Any = {"rtol": 4 * UNIT[case["f"]], "atol": 1e-5 if case["f"] == "f32" else 4e-3}
    torch.testing.assert_close(answers["recognize-linears"], answers["imported"], **tolerance)

    exact = quantized.dequantize().to(x.dtype)
    exact = exact.T.contiguous() if case["spelling"] == "conv1d" else exact
    bias = store.get("fc.bias")
    replaced = {"fc.weight": exact} | ({} if bias is None else {"fc.bias": bias})
    (expected,) = run(recognized[0], replaced, (x,))
    # A weight [K, N] is the same numbers, but the matrix may lie the other way round.
    same: Any = tolerance if case["spelling"] == "conv1d" else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(answers["quantize-weights"], expected, **same)
    for name in ("legalize", "assign-layouts", "split-m-buckets"):
        torch.testing.assert_close(answers[name], answers["quantize-weights"], **same)

    y, bound = reference(x, quantized, bias, case["target"], case["f"])
    excess = (answers["lower-to-tile"].double() - y).abs() / bound.clamp(min=1e-30)
    assert excess.max() <= 1, f"{excess.max():.3g} times the bound of rounding"
    for name in ("fold-weights", "materialize"):
        assert torch.equal(answers[name], answers["lower-to-tile"])


@pytest.mark.parametrize("target", ["sm_90", "cpu_avx512"])
def test_batches_of_any_rank(linear: Any, weights: Any, stages_over: Any, target: str) -> None:
    """[batch, sequence, K], and no rows at all."""
    module, store = linear(24, 64, "bf16", True, lead="?x?"), weights(24, 64, "bf16", True)
    run_stages(module, stages_over(store, target, "*=int4_g32"))
    x = torch.randn(3, 2, 64, dtype=torch.bfloat16)
    (y,) = run(module, store, (x,))
    rows = [run(module, store, (row[None, None],))[0] for row in x.flatten(0, 1)]
    torch.testing.assert_close(y.flatten(0, 1), torch.cat(rows).flatten(0, 1), rtol=0.01, atol=1e-3)
    assert run(module, store, (x[:0],))[0].shape == (0, 2, 24)


def test_weights_that_lie_on_the_grid_are_not_changed(linear: Any, stages_over: Any) -> None:
    """Codes 0 and 15 in every group, scales and zero points in f16: int4 g32 is exact."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 16, (16, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 15
    scale = (torch.rand(16, 4, 1, generator=generator) * 0.01 + 0.001).half().float()
    zero = (torch.randn(16, 4, 1, generator=generator) * 0.05).half().float()
    store = {"fc.weight": (codes * scale + zero).flatten(1)}
    dense = store["fc.weight"].double()
    module = linear(16, 128)
    x = torch.randn(3, 128, generator=generator)
    run_stages(module, stages_over(store, "cpu_avx512", "*=int4_g32"))
    (y,) = run(module, store, (x,))
    torch.testing.assert_close(y.double(), x.double() @ dense.T, rtol=1e-5, atol=1e-6)
